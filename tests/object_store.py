"""A small object store on this machine, from a dictionary: what Arrow asks of an S3 server."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Store(ThreadingHTTPServer):
    """``objects`` by ``bucket/key``; a key that ``denied`` matches is not written. ``handler`` speaks for it."""

    daemon_threads = True

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.objects: dict[str, bytes] = {}
        self.times: dict[str, float] = {}
        self.written: list[str] = []
        """keys in the order in which they were"""
        self.denied: str | None = None
        self.parts: dict[str, dict[int, bytes]] = {}

    def put(self, key: str, data: bytes) -> bool:
        if self.denied and re.search(self.denied, key):
            return False
        self.objects[key], self.times[key] = data, time.time()
        self.written.append(key)
        return True


class Handler(BaseHTTPRequestHandler):
    """What all of them need."""

    protocol_version = "HTTP/1.1"
    server: Store

    def log_message(self, *_: object) -> None:
        pass

    def _asked(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        return unquote(parts.path).lstrip("/"), {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            data = self.rfile.read(int(self.headers.get("content-length", 0)))
        if "aws-chunked" in self.headers.get("content-encoding", ""):  # chunks of Amazon's inside
            whole, rest = b"", data
            while rest:
                head, _, rest = rest.partition(b"\r\n")
                size = int(head.split(b";")[0], 16)
                if not size:
                    break
                whole, rest = whole + rest[:size], rest[size + 2 :]
            return whole
        return data

    def _say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _part(self, data: bytes, **told: str) -> None:
        """``data``, or what is asked for of it."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if not asked:
            return self._say(200, data, **told)
        start, stop = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1) + 1
        return self._say(206, data[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{len(data)}", **told)


class S3(Handler):
    def _xml(self, name: str, inside: str) -> None:
        text = f'<?xml version="1.0"?><{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</{name}>'
        self._say(200, text.encode(), Content_Type="application/xml")

    def _no(self, status: int, code: str) -> None:
        self._say(
            status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode(), Content_Type="application/xml"
        )

    def do_PUT(self) -> None:
        key, query = self._asked()
        data = self._body()
        if "partNumber" in query:
            self.server.parts[query["uploadId"]][int(query["partNumber"])] = data
            self._say(200, ETag='"part"')
        elif "/" not in key.strip("/") or self.server.put(key, data):
            self._say(200, ETag=f'"{hashlib.md5(data).hexdigest()}"')
        else:
            self._no(403, "AccessDenied")

    def do_POST(self) -> None:
        key, query = self._asked()
        body = self._body()
        if "uploads" in query:
            number = f"u{len(self.server.parts)}"
            self.server.parts[number] = {}
            self._xml("InitiateMultipartUploadResult", f"<Key>{escape(key)}</Key><UploadId>{number}</UploadId>")
        elif "uploadId" in query:
            parts = self.server.parts.pop(query["uploadId"])
            if self.server.put(key, b"".join(parts[n] for n in sorted(parts))):
                self._xml("CompleteMultipartUploadResult", f'<Key>{escape(key)}</Key><ETag>"x"</ETag>')
            else:
                self._no(403, "AccessDenied")
        else:  # several to delete
            for name in re.findall(rb"<Key>(.*?)</Key>", body):
                self.server.objects.pop(f"{key.strip('/')}/{name.decode()}", None)
            self._xml("DeleteResult", "")

    def do_DELETE(self) -> None:
        key, query = self._asked()
        if "uploadId" in query:
            self.server.parts.pop(query["uploadId"], None)
        else:
            self.server.objects.pop(key, None)
        self._say(204)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        key, query = self._asked()
        if "/" not in key.strip("/"):
            return self._list(key.strip("/"), query) if self.command == "GET" else self._say(200)
        data = self.server.objects.get(key)
        if data is None:
            return self._no(404, "NoSuchKey")
        told = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Last_Modified": formatdate(self.server.times[key], usegmt=True)}
        if self.command == "HEAD":
            return self._say(200, Content_Length=str(len(data)), **told)
        return self._part(data, **told)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        keys = sorted(k.removeprefix(f"{bucket}/") for k in self.server.objects if k.startswith(f"{bucket}/{prefix}"))
        folders, files = set(), []
        for key in keys:
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                files.append(key)
        inside = "".join(
            f"<Contents><Key>{escape(k)}</Key><Size>{len(self.server.objects[f'{bucket}/{k}'])}</Size><ETag>&quot;x&quot;</ETag>"
            f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(self.server.times[f'{bucket}/{k}']))}"
            "</LastModified></Contents>"
            for k in files
        )
        inside += "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        count = len(files) + len(folders)
        self._xml(
            "ListBucketResult",
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>1000</MaxKeys>"
            f"<IsTruncated>false</IsTruncated>{inside}",
        )


@contextmanager
def object_store(handler: type[Handler] = S3) -> Iterator[Store]:
    """Served until the end."""
    server = Store(handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
