// Requests to the server that the page is from, and no other.
let token = "";  // kept by this page only

export function useToken(given) { token = given; }

export async function get(path, options = {}) {
  return fetch(path, {...options, headers: {...options.headers, ...(token ? {authorization: `Bearer ${token}`} : {})}});
}

async function checked(answer) {
  if (answer.ok) return answer;
  let why = `${answer.status} ${answer.statusText}`;
  try { why = (await answer.json()).error || why; } catch { /* not ours: the status must do */ }
  throw new Error(why);
}

export async function getJson(path) { return (await checked(await get(path))).json(); }

export async function post(path, body, signal) {
  return checked(await get(path, {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body), signal}));
}

export async function* events(body, signal) {  // of a generation: [kind, data]
  const answer = await post("v1/stream", body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "", ended = false;
  for (;;) {
    const {done, value} = await reader.read();
    if (done) break;
    held += value;
    for (let end; (end = held.indexOf("\n\n")) >= 0; held = held.slice(end + 2)) {
      const [, kind, data] = /^event: (\w+)\ndata: (.*)$/s.exec(held.slice(0, end));
      const said = JSON.parse(data);
      if (kind === "error") throw new Error(said.error);
      ended = ended || kind === "done";
      yield [kind, said];
    }
  }
  if (!ended) throw new Error("the server ended the answer early");
}
