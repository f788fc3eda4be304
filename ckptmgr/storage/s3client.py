"""S3 through s3fs, and the client of botocore within."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from errno import EACCES
from typing import Any

from ckptmgr.storage.clouds import Place, module
from ckptmgr.storage.fsspecs import answer, cut, delete_each, filesystem, send_once, sync, unless_absent, whole
from ckptmgr.storage.marking import bare
from ckptmgr.storage.store import Answer, Marked, Upload, Version


class S3Client:
    """Through s3fs and the client of botocore within."""

    has_checksums = False  # it compares by itself
    has_remove = False  # Amazon has had a conditional DELETE only for a while, others have none

    def __init__(self, place: Place, options: dict[str, Any]) -> None:
        if region := options.pop("region", None):
            options["client_kwargs"] = {"region_name": region, **(options.get("client_kwargs") or {})}
        self.fs = filesystem("s3", options)
        config = dict(options.pop("config_kwargs", None) or {})
        config["retries"] = {"total_max_attempts": 1, "mode": "standard"}
        self._once = filesystem("s3", {**options, "config_kwargs": config})
        self._bucket = place.bucket
        self._errors = module("botocore.exceptions")
        broken = module("aiohttp").ClientError  # of a body that breaks off, which botocore leaves as it is
        self.errors: tuple[type[Exception], ...] = (self._errors.ClientError, self._errors.BotoCoreError, broken)
        self._lost = (self._errors.BotoCoreError, broken, OSError)

    def read(self, path: str) -> tuple[bytes, Version] | None:
        async def ask() -> tuple[bytes, Version]:
            await self.fs.set_session()
            client = await self.fs.get_s3(self._bucket)
            found = await client.get_object(Bucket=self._bucket, Key=path)
            async with found["Body"] as body:  # else a connection that breaks would not be closed
                return await body.read(), found["ETag"]

        return unless_absent(self._told(self.fs, ask, path))

    def send(self, path: str, data: bytes | None, version: Version | None) -> tuple[Answer, Version | None]:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}

        async def ask() -> object:
            await self._once.set_session()
            client = await self._once.get_s3(self._bucket)
            send_once(await client._endpoint.http_session._get_session(None))
            return await client.put_object(Bucket=self._bucket, Key=path, Body=data, **condition)

        told, error = self._told(self._once, ask, path)
        return answer(told, error, path, is_made_here=version is None), None if error else told["ETag"]

    def pages(self, prefix: str) -> Iterator[list[tuple[str, Marked]]]:
        more: dict[str, str] = {}
        while True:
            page = self.fs.call_s3("list_objects_v2", Bucket=self._bucket, Prefix=prefix, **more)
            yield [
                (each["Key"], Marked(each["Size"], whole(each["LastModified"]), bare(each["ETag"])))
                for each in page.get("Contents", [])
            ]
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, paths: Sequence[str]) -> None:
        for some in cut(paths, 1_000):
            named = {"Objects": [{"Key": path} for path in some], "Quiet": True}
            is_done = False
            with suppress(OSError):  # not all servers have this request
                is_done = not self.fs.call_s3("delete_objects", Bucket=self._bucket, Delete=named).get("Errors")
            if not is_done:
                delete_each(self.fs, self._bucket, some)

    def checksum(self, path: str) -> int | None:
        return None

    def pipe(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(f"{self._bucket}/{path}", data)

    def uploads(self, prefix: str) -> list[Upload]:
        found: list[Upload] = []
        more: dict[str, str] = {}
        while True:
            page = self.fs.call_s3("list_multipart_uploads", Bucket=self._bucket, Prefix=prefix, **more)
            found += [Upload(each["Key"], each["UploadId"], each["Initiated"].timestamp()) for each in page.get("Uploads", [])]
            if not page.get("IsTruncated"):
                return found
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abort(self, upload: Upload) -> None:
        with suppress(FileNotFoundError):
            self.fs.call_s3("abort_multipart_upload", Bucket=self._bucket, Key=upload.key, UploadId=upload.id)

    def discard(self, file: Any) -> None:
        file.closed = True  # else it would be completed when it is collected
        file.discard()

    def _told(self, fs: Any, ask: Any, path: str) -> tuple[Any, BaseException | None]:
        """The status and the error of a request; its result and no error if there was none."""
        try:
            return sync(fs.loop, ask), None
        except self._errors.ClientError as error:
            return error.response["ResponseMetadata"]["HTTPStatusCode"], error
        except self._errors.NoCredentialsError as error:
            raise PermissionError(EACCES, str(error), f"s3://{self._bucket}/{path}") from error
        except self._lost as error:
            return 0, error
