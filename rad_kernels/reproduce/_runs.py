"""Long work in pieces: each is stored when done, and not done again while its settings stay the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Store:
    """Results of named pieces as JSON files in a folder, which is made when the first is stored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str, settings: Mapping[str, Any], work: Callable[[], Any]) -> Any:
        """What ``work`` returned for these settings: then, or now. Files of other settings are replaced."""
        found = self.find(name, settings)
        if found is not None:
            return found
        result = work()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(name), {"settings": dict(settings), "result": result})
        return result

    def find(self, name: str, settings: Mapping[str, Any]) -> Any | None:
        try:
            content = json.loads(self._path(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except json.JSONDecodeError as error:
            raise ValueError(f"{self._path(name)}: damaged ({error}); remove it to do it again") from error
        return content["result"] if content["settings"] == json.loads(json.dumps(settings)) else None

    def _path(self, name: str) -> Path:
        return self.folder / f"{''.join(c if c.isalnum() or c in '-._' else '_' for c in name)}.json"


def write_json(path: Path, content: Any) -> None:
    """All or nothing: an interrupted write leaves what was there."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
