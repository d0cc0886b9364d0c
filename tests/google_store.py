"""What Arrow asks of Google's object store."""

from __future__ import annotations

import json
import re
import time
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.object_store import Handler


class Google(Handler):
    """Its JSON interface, with resumable uploads; and the place where a token is got, as ``/token``."""

    def _json(self, status: int, value: Any, **headers: str) -> None:
        self._say(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _no(self, status: int) -> None:
        self._json(status, {"error": {"code": status, "message": "no"}})

    def _entry(self, key: str) -> dict[str, str]:
        bucket, _, name = key.partition("/")
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.server.times[key]))
        version = str(int(self.server.times[key] * 1e6))
        told = {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(self.server.objects[key]))}
        return told | {"generation": version, "metageneration": "1", "etag": version, "timeCreated": when, "updated": when}

    def _object(self) -> tuple[str, str, str | None, dict[str, str]]:
        """Which interface, bucket, name of the object where there is one, and options."""
        found = re.fullmatch(r"(/upload)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", urlsplit(self.path).path)
        assert found, self.path
        return found[1] or "", found[2], found[3] and unquote(found[3]), self._asked()[1]

    def do_POST(self) -> None:
        self._body()
        if self.path.startswith("/token"):
            return self._json(200, {"access_token": "t", "expires_in": 3600, "token_type": "Bearer"})
        _, bucket, _, options = self._object()
        number = f"{bucket}/{options['name']}"
        self.server.parts[number] = {}
        at = f"http://{self.headers['host']}/upload/storage/v1/b/{bucket}/o?upload_id={number}"
        return self._say(200, Location=at)

    def do_PUT(self) -> None:
        data, (_, _, _, options) = self._body(), self._object()
        key = options["upload_id"]
        parts = self.server.parts[key]
        parts[len(parts)] = data
        whole = b"".join(parts[n] for n in sorted(parts))
        if self.headers["content-range"].endswith("/*"):
            return self._say(308, Range=f"bytes=0-{len(whole) - 1}")
        return self._json(200, self._entry(key)) if self.server.put(key, whole) else self._no(403)

    def do_DELETE(self) -> None:
        _, bucket, name, _ = self._object()
        self.server.objects.pop(f"{bucket}/{name}", None)
        self._say(204)

    def do_GET(self) -> None:
        _, bucket, name, options = self._object()
        key = f"{bucket}/{name}"
        if name is None:
            begins, part = f"{bucket}/{options.get('prefix', '')}", options.get("delimiter")
            keys = sorted(key for key in self.server.objects if key.startswith(begins))
            deeper = [key for key in keys if part and part in key.removeprefix(begins)]
            folders = {options["prefix"] + key.removeprefix(begins).partition(part)[0] + part for key in deeper if part}
            found = [self._entry(key) for key in keys if key not in deeper]
            return self._json(200, {"kind": "storage#objects", "items": found, "prefixes": sorted(folders)})
        if key not in self.server.objects:
            return self._no(404)
        if options.get("alt") == "media":
            return self._part(self.server.objects[key], x_goog_generation=self._entry(key)["generation"])
        return self._json(200, self._entry(key))
