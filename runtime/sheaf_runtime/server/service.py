"""What the routes share: configuration, engine client, tokenizer and state of this process."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from sheaf_runtime.config import EngineConfig, ServerConfig
from sheaf_runtime.priority import make_way
from sheaf_runtime.protocol.messages import EngineReady
from sheaf_runtime.server.adapter_names import AdapterNames
from sheaf_runtime.server.body import Bodies
from sheaf_runtime.server.client import EngineClient
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.lifecycle import Lifecycle
from sheaf_runtime.server.metrics import Metrics
from sheaf_runtime.server.model_folder import ModelFolder, ModelFolderError
from sheaf_runtime.server.pace import Pace
from sheaf_runtime.server.tracing import Traces

# Of a core, for large bodies and for refusals each, while the engine works. On a CPU every core computes;
# beside an accelerator one is this process's own.
SHARE_BESIDE_CPU, SHARE_BESIDE_ACCELERATOR = 0.04, 0.25


class Service:
    """``folder`` and ``client`` are set while loading; requests are refused until both are there.

    Attributes:
        root: MODEL as it was given.
        engine_config: its ``model`` becomes the folder that is read, once that is here.
    """

    def __init__(self, engine: EngineConfig, server: ServerConfig, traces: Traces | None = None) -> None:
        self.engine_config = engine
        self.root = engine.model
        self.server_config = server
        self.traces = traces
        self.model_names = server.served_model_name or (self.root,)
        self.adapters = AdapterNames(self.model_names, engine.lora_modules)
        # A name is looked up before an adapter is read, and written behind that.
        self.adapter_changes = asyncio.Lock()
        self._adapters_tried = server.adapters_file is None
        self.lifecycle = Lifecycle()
        self.metrics = Metrics(
            self.model_names[0],
            max_loras=engine.max_loras if engine.enable_lora else None,
            max_drafts=engine.max_drafts,
        )
        self.metrics.draining = lambda: self.lifecycle.draining
        self.tokenizing = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "tokenize")
        self.tokenizing_large = ThreadPoolExecutor(1, "tokenize-large", make_way)
        self.bodies = Bodies(
            Pace(self._busy, self._share), Pace(self._busy, self._share), server.max_body_size
        )
        self._client: EngineClient | None = None
        self._folder: ModelFolder | None = None

    def _busy(self) -> bool:
        return self._client is not None and self._client.in_flight > 0

    def _share(self) -> float:
        info = self._client.info if self._client else None
        return SHARE_BESIDE_ACCELERATOR if info and info.device != "cpu" else SHARE_BESIDE_CPU

    def attach(self, client: EngineClient) -> None:
        self._client = client
        self.metrics.in_flight = lambda: client.in_flight
        self.metrics.seconds_since_progress = lambda: client.seconds_since_progress

    def set_folder(self, folder: ModelFolder) -> None:
        """Raises ``ModelFolderError`` for one that does not go with the flags."""
        if self.server_config.enable_auto_tool_choice and self._tool_parser_of(folder) is None:
            raise ModelFolderError(
                "--enable-auto-tool-choice: the chat template does not tell how the model writes its calls; "
                "name a --tool-call-parser"
            )
        self._folder = folder
        self._ready_if_complete()

    def engine_ready(self, info: EngineReady) -> None:
        self.metrics.info = info
        self._ready_if_complete()

    def adapters_tried(self) -> None:
        """Each adapter of ``--adapters-file`` is here, or it is known why not."""
        self._adapters_tried = True
        self._ready_if_complete()

    def _ready_if_complete(self) -> None:
        loaded = self._folder is not None and self._client is not None and self._client.info is not None
        if loaded and self._adapters_tried:
            self.lifecycle.engine_ready()

    def admit(self) -> None:
        """Raises the ``ApiError`` of a server that takes no requests now."""
        if refusal := self.lifecycle.refusal():
            raise refusal

    @property
    def client(self) -> EngineClient:
        assert self._client is not None
        return self._client

    @property
    def folder(self) -> ModelFolder:
        """Raises ``ApiError`` while the tokenizer is not loaded yet."""
        if self._folder is None:
            raise self.lifecycle.refusal() or ApiError(503, "the tokenizer is still loading", code="loading")
        return self._folder

    @property
    def tool_parser(self) -> str | None:
        """The name of the parser of the model's calls, if one is known."""
        return self._tool_parser_of(self.folder)

    def _tool_parser_of(self, folder: ModelFolder) -> str | None:
        return self.server_config.tool_call_parser or folder.tool_parser

    @property
    def max_model_len(self) -> int | None:
        """None until the engine is ready."""
        info = self._client.info if self._client else None
        return info.max_model_len if info else None

    def check_model(self, name: str | None) -> str:
        """The name to answer with. Raises ``ApiError`` 404 for a model that is not served here."""
        if not name:
            return self.model_names[0]
        if name not in self.model_names and self.adapters.get(name) is None:
            served = ", ".join((*self.model_names, *(adapter.name for adapter in self.adapters)))
            raise ApiError(
                404,
                f"the model '{name}' does not exist; this server has: {served}",
                param="model",
                code="model_not_found",
            )
        return name

    def adapter_of(self, name: str | None) -> int | None:
        """The id of the adapter that a request names; None: it names the model. Raises as ``check_model``."""
        adapter = self.adapters.get(self.check_model(name))
        return None if adapter is None else adapter.id_
