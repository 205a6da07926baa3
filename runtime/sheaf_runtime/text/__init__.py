"""Between text and token ids: tokenizer, chat template, incremental detokenizer, stop strings.

A leaf that imports neither torch nor transformers: the API process and the in-process ``LLM`` share it.
"""

from sheaf_runtime.text.chat_template import ChatTemplate, ChatTemplateError, left_out
from sheaf_runtime.text.output import OutputText
from sheaf_runtime.text.tokenizer import Tokenizer, TokenizerError

__all__ = ["ChatTemplate", "ChatTemplateError", "OutputText", "Tokenizer", "TokenizerError", "left_out"]
