"""Qdrant's official local engine with what a server needs beside it: quick commits, and a record of indexes."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from qdrant_client.http import models
from qdrant_client.local.qdrant_local import QdrantLocal

from stream.embedded import qdrant_filters

DETAILS = "details.json"


class Engine:
    """The engine of one folder, for one thread. What the engine accepts and drops (payload indexes, the graph's
    parameters) is written down here, so that `info` reports it as a server would."""

    def __init__(self, path: Path) -> None:
        qdrant_filters.install()
        self._details_file = path / DETAILS
        self._details: dict[str, dict[str, Any]] = {}
        self.local = QdrantLocal(str(path), force_disable_check_same_thread=True)
        for name in self.local.collections:
            self._relax_commits(name)
        if self._details_file.exists():
            self._details = json.loads(self._details_file.read_text())

    def close(self) -> None:
        self.local.close()

    def create(self, name: str, body: models.CreateCollection) -> bool:
        created = self.local.create_collection(name, body.vectors, body.sparse_vectors, body.metadata)
        self._relax_commits(name)
        hnsw = body.hnsw_config.model_dump(exclude_none=True) if body.hnsw_config else {}
        self._details[name] = {"hnsw_config": hnsw, "indexes": {}}
        self._save()
        return created

    def delete(self, name: str) -> bool:
        if name in self.local.collections:
            self.local.collections[name].close()
        deleted = self.local.delete_collection(name)
        if self._details.pop(name, None) is not None:
            self._save()
        return deleted

    def info(self, name: str) -> models.CollectionInfo:
        info = self.local.get_collection(name)
        details = self._of(name)
        info.config.hnsw_config = info.config.hnsw_config.model_copy(update=details["hnsw_config"])
        info.payload_schema = {field: self._index(name, field, kind) for field, kind in details["indexes"].items()}
        return info

    def create_index(self, name: str, field: str, schema: models.PayloadFieldSchema | None) -> models.UpdateResult:
        if schema is None:
            raise ValueError("field_schema: is required")
        result = self.local.create_payload_index(name, field, schema)
        kept = schema.model_dump(exclude_none=True) if isinstance(schema, BaseModel) else schema
        self._of(name)["indexes"][field] = kept
        self._save()
        return result

    def delete_index(self, name: str, field: str) -> models.UpdateResult:
        result = self.local.delete_payload_index(name, field)
        self._of(name)["indexes"].pop(field, None)
        self._save()
        return result

    def _index(self, name: str, field: str, kept: str | dict[str, Any]) -> models.PayloadIndexInfo:
        empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=field))
        points = self.local.count(name, models.Filter(must_not=[empty])).count
        if isinstance(kept, str):
            return models.PayloadIndexInfo(data_type=models.PayloadSchemaType(kept), points=points)
        return models.PayloadIndexInfo.model_validate({"data_type": kept["type"], "params": kept, "points": points})

    def _of(self, name: str) -> dict[str, Any]:
        return self._details.setdefault(self.local.aliases.get(name, name), {"hnsw_config": {}, "indexes": {}})

    def _save(self) -> None:
        draft = self._details_file.with_suffix(".new")
        draft.write_text(json.dumps(self._details))
        draft.replace(self._details_file)

    def _relax_commits(self, name: str) -> None:
        """The engine commits after every point. With a write-ahead log a commit needs no fsync: it survives the death
        of the process, and a power cut may take the last of them."""
        storage = self.local.collections[name].storage
        if storage is not None:
            storage.storage.execute("PRAGMA journal_mode=WAL")
            storage.storage.execute("PRAGMA synchronous=NORMAL")
