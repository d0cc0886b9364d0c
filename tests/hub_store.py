"""What huggingface_hub's file system asks of the Hub."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

from tests.object_store import Handler


class Hub(Handler):
    """One repository of data sets; its files are small, so that a commit holds them."""

    repository = "me/results"
    commits = 0

    def _json(self, status: int, value: Any, **headers: str) -> None:
        self._say(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _files(self) -> dict[str, bytes]:
        return {key.removeprefix(f"{self.repository}/"): data for key, data in self.server.objects.items()}

    def _api(self) -> tuple[str | None, str] | None:
        """What is asked of the repository, and about which path."""
        what = "(revision|tree|preupload|commit)"
        found = re.fullmatch(rf"api/datasets/{self.repository}(?:/{what}/main(?:/(.*))?)?", self._asked()[0])
        return found and (found[1], found[2] or "")

    def do_POST(self) -> None:
        body, (what, _) = self._body(), self._api() or (None, "")
        if what == "preupload":
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            return self._json(200, {"files": modes})
        assert what == "commit", self.path
        for line in map(json.loads, body.splitlines()):
            key = f"{self.repository}/{line['value'].get('path')}"
            if line["key"] == "file" and not self.server.put(key, base64.b64decode(line["value"]["content"])):
                return self._json(403, {"error": "no"})
            if line["key"] == "deletedFile":
                del self.server.objects[key]
        Hub.commits += 1
        commit = f"{self.commits:040x}"
        url = f"http://{self.headers['host']}/datasets/{self.repository}/commit/{commit}"
        return self._json(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        files, asked = self._files(), self._api()
        if asked is not None and asked[0] in (None, "revision"):
            return self._json(200, {"id": self.repository, "sha": f"{self.commits:040x}", "private": False, "siblings": []})
        if asked is not None:
            return self._tree(asked[1], files)
        found = re.fullmatch(rf"datasets/{self.repository}/resolve/main/(.*)", self._asked()[0])
        if found is None or found[1] not in files:
            return self._json(404, {"error": "no"}, X_Error_Code="EntryNotFound")
        data = files[found[1]]
        told = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": f"{self.commits:040x}"}
        return self._part(data, **told)

    def _tree(self, folder: str, files: dict[str, bytes]) -> None:
        base = f"{folder}/" if folder else ""
        deep = self._asked()[1].get("recursive", "false").lower() == "true"
        found: dict[str, dict[str, Any]] = {}
        for name in sorted(files):
            if not name.startswith(base):
                continue
            *above, _ = name.removeprefix(base).split("/")
            for depth in range(1, len(above) + 1 if deep else min(len(above), 1) + 1):
                path = base + "/".join(above[:depth])
                found[path] = {"type": "directory", "path": path, "oid": "0" * 40}
            if deep or not above:
                data = files[name]
                found[name] = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if folder and not found:
            return self._json(404, {"error": "no"}, X_Error_Code="EntryNotFound")
        return self._json(200, list(found.values()))
