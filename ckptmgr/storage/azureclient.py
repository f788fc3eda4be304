"""Azure through adlfs, and Microsoft's client within."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from ckptmgr.storage.clouds import Place, module
from ckptmgr.storage.fsspecs import answer, cut, delete_each, filesystem, send_once, sync, unanswered, unless_absent, whole
from ckptmgr.storage.marking import bare
from ckptmgr.storage.store import Answer, Marked, Upload, Version


class AzureClient:
    """Through adlfs and Microsoft's client within."""

    has_checksums = False
    has_remove = True

    def __init__(self, place: Place, options: dict[str, Any]) -> None:
        if place.account:
            options.setdefault("account_name", place.account)
        self.fs = filesystem("az", options)
        self._bucket = place.bucket
        self._errors = module("azure.core.exceptions")
        self.errors: tuple[type[Exception], ...] = (self._errors.AzureError, RuntimeError)  # the second: of adlfs, for a block
        self._match = module("azure.core").MatchConditions

    def read(self, path: str) -> tuple[bytes, Version] | None:
        async def ask() -> tuple[bytes, Version]:
            async with self._blob(path) as blob:
                found = await blob.download_blob()
                return await found.readall(), found.properties.etag

        return unless_absent(self._told(ask))

    def send(self, path: str, data: bytes | None, version: Version | None) -> tuple[Answer, Version | None]:
        condition = {} if version is None else {"etag": version, "match_condition": self._match.IfNotModified}
        transport = self.fs.service_client._pipeline._transport

        async def ask() -> object:
            await transport.open()
            send_once(transport.session)
            async with self._blob(path) as blob:
                if data is None:
                    return await blob.delete_blob(**condition, retry_total=0)
                return await blob.upload_blob(data, overwrite=version is not None, **condition, retry_total=0)

        told, error = self._told(ask)
        return answer(told, error, path, is_made_here=version is None), None if error or data is None else told["etag"]

    def pages(self, prefix: str) -> Iterator[list[tuple[str, Marked]]]:
        found = self._container().list_blobs(name_starts_with=prefix, results_per_page=5_000).by_page()

        async def ask() -> list[Any] | None:
            try:
                return [blob async for blob in await anext(found)]
            except StopAsyncIteration:
                return None

        while (page := sync(self.fs.loop, ask)) is not None:
            yield [(blob.name, Marked(blob.size, whole(blob.last_modified), bare(blob.etag))) for blob in page]

    def delete(self, paths: Sequence[str]) -> None:
        async def ask(some: Sequence[str]) -> bool:
            answers = await self._container().delete_blobs(*some, raise_on_any_failure=False)
            return all([each.status_code < 400 or each.status_code == 404 async for each in answers])

        for some in cut(paths, 256):
            is_done = False
            with suppress(self._errors.HttpResponseError):  # not all accounts and signatures allow this request
                is_done = sync(self.fs.loop, functools.partial(ask, some))
            if not is_done:
                delete_each(self.fs, self._bucket, some)

    def checksum(self, path: str) -> int | None:
        return None

    def keep(self, path: str, data: bytes) -> None:
        async def ask() -> None:
            async with self._blob(path) as blob:
                await blob.upload_blob(data, overwrite=True, validate_content=True, retry_total=0)

        status, error = self._told(ask)
        if error is not None:
            raise unanswered(status, error, path) from error

    def pipe(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(f"{self._bucket}/{path}", data)

    def uploads(self, prefix: str) -> list[Upload]:
        return []  # blocks that are never committed go by themselves after a week, and cannot be listed

    def abort(self, upload: Upload) -> None:
        pass

    def discard(self, file: Any) -> None:
        file.closed = True

    def _container(self) -> Any:
        return self.fs.service_client.get_container_client(self._bucket)

    def _blob(self, path: str) -> Any:
        return self.fs.service_client.get_blob_client(self._bucket, path)

    def _told(self, ask: Any) -> tuple[Any, BaseException | None]:
        try:
            return sync(self.fs.loop, ask), None
        except self._errors.HttpResponseError as error:
            return error.status_code or 0, error
        except (self._errors.AzureError, OSError) as error:
            return 0, error
