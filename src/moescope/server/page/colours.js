// What a token is coloured by: the expert that weighs most in a layer, a circuit neuron, or how likely the token was.
import {short} from "./dom.js";

const GOLDEN = 137.508, BLUE = 205, ORANGE = 28, REACH = 4;  // degrees; standard deviations at full strength

export const hueOf = number => Math.round((number * GOLDEN + 20) % 360);
export const signed = (value, reach = REACH) => value === null ? {hue: 0, much: 0}
  : {hue: value >= 0 ? BLUE : ORANGE, much: Math.min(1, Math.abs(value) / reach)};

export function coloursOf(info) {  // the choices, each with of(token, tokens) -> {hue, much, label, at}
  const found = [];
  if (info.experts) info.experts.layers.forEach((layer, l) => found.push({
    key: `layer-${layer}`, name: `layer ${layer}: the expert that weighs most`, row: l,
    of: token => token.experts && token.experts.ids[l].length
      ? expert(layer, token.experts.ids[l][0], token.experts.weights[l][0]) : null}));
  info.circuits.forEach((circuit, c) => {
    const reach = tokens => circuit.unit === "z" ? REACH : Math.max(1e-9, ...tokens.map(t => Math.max(...t.circuits[circuit.task].map(v => Math.abs(v || 0)))));
    const neuron = (token, tokens, k) => {
      const value = token.circuits[circuit.task][k];
      return {...signed(value, reach(tokens)), label: value === null ? "–" : value.toFixed(1), at: circuit.neurons[k]};
    };
    found.push({key: `circuit-${c}`, name: `circuit of ${circuit.task}: the neuron that fires most`, of: (token, tokens) => {
      const size = token.circuits[circuit.task].map(v => Math.abs(v || 0)), k = size.indexOf(Math.max(...size));
      const {much, at} = neuron(token, tokens, k);
      return {hue: hueOf(k), much, label: `#${k + 1}`, at};
    }});
    circuit.neurons.forEach((name, k) => found.push({key: `circuit-${c}-${k + 1}`, name: `${circuit.task}: #${k + 1} ${name}`, of: (token, tokens) => neuron(token, tokens, k)}));
  });
  found.push({key: "p", name: "how likely the token was", of: token => token.p === undefined ? null : {hue: BLUE, much: token.p, label: short(token.p), at: null}});
  return found;
}

export const expert = (layer, number, weight) => ({hue: hueOf(number), much: .3 + .7 * Math.max(0, Math.min(1, weight)), label: String(number), at: `${layer}:${number}`});
