"""The CRI image service: the images of the table are always there, any other is not found."""

import os
import time
from pathlib import Path
from typing import Any

from localcluster.cri.images import Image
from localcluster.cri.runtime import Runtime
from localcluster.cri.service import answers, pb, rpc, unimplemented


class ImageService(rpc.ImageServiceServicer):  # type: ignore[misc]
    def __init__(self, runtime: Runtime, state_dir: Path) -> None:
        self._runtime = runtime
        self._state_dir = state_dir
        self._asked_for: dict[str, Image] = {}

    @answers
    async def ImageStatus(self, request: Any) -> Any:
        image = self._runtime.images.find(request.image.image)
        if image is None:
            return pb.ImageStatusResponse()
        self._asked_for[image.name] = image
        return pb.ImageStatusResponse(image=_describe(image))

    @answers
    async def PullImage(self, request: Any) -> Any:
        image = self._runtime.image(request.image.image)
        self._asked_for[image.name] = image
        return pb.PullImageResponse(image_ref=image.name)

    @answers
    async def ListImages(self, request: Any) -> Any:
        wanted = request.filter.image.image
        images = [_describe(image) for image in self._asked_for.values() if wanted in ("", image.name)]
        return pb.ListImagesResponse(images=images)

    @answers
    async def RemoveImage(self, request: Any) -> Any:
        self._asked_for.pop(request.image.image, None)
        return pb.RemoveImageResponse()

    @answers
    async def ImageFsInfo(self, request: Any) -> Any:
        place = os.statvfs(self._state_dir)
        usage = pb.FilesystemUsage(
            timestamp=time.time_ns(),
            fs_id=pb.FilesystemIdentifier(mountpoint=str(self._state_dir)),
            used_bytes=pb.UInt64Value(value=(place.f_blocks - place.f_bfree) * place.f_frsize),
            inodes_used=pb.UInt64Value(value=place.f_files - place.f_ffree),
        )
        return pb.ImageFsInfoResponse(image_filesystems=[usage], container_filesystems=[usage])

    StreamImages = unimplemented("use ListImages")


def _describe(image: Image) -> Any:
    return pb.Image(
        id=image.name,
        repo_tags=[image.name],
        size=1,  # nothing is stored
        uid=pb.Int64Value(value=image.uid),
        spec=pb.ImageSpec(image=image.name),
        pinned=True,
    )
