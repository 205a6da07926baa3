"""LangChain's ChatOpenAI: invoke, stream, batch, async, structured output, tools.

python with_langchain.py URL MODEL_FOLDER
"""

from __future__ import annotations

import asyncio
import sys

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    population: int = Field(ge=0, le=100_000_000)


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def main(url: str, folder: str) -> None:
    base = f"{url}/v1"
    model = ChatOpenAI(base_url=base, api_key="none", model="m", temperature=0, max_tokens=24)
    question = [HumanMessage("What is the capital of France?")]

    whole = model.invoke(question)
    assert "Paris" in whole.content, whole
    usage = whole.usage_metadata
    assert usage
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
    assert whole.response_metadata["finish_reason"] == "stop"
    print("✓ invoke, with usage")

    pieces = list(model.stream(question, stream_usage=True))
    assert "".join(piece.text for piece in pieces) == whole.text
    (told,) = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    assert told["total_tokens"] == usage["total_tokens"]
    print("✓ stream: the same text, the same usage")

    assert [answer.text for answer in model.batch([question, question])] == [whole.text] * 2
    assert asyncio.run(model.ainvoke(question)).text == whole.text
    print("✓ batch and ainvoke: the same text")

    for method in ("json_schema", "function_calling"):
        city = model.model_copy(update={"max_tokens": 80})
        made = city.with_structured_output(City, method=method).invoke("Name a city and its population.")
        assert isinstance(made, City), made
        print(f"✓ with_structured_output, {method}")

    ask = HumanMessage("How is the weather in Paris?")
    (call,) = model.bind_tools([weather], tool_choice="weather").invoke([ask]).tool_calls
    assert call["name"] == "weather"
    assert isinstance(call["args"]["city"], str)
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    talk = [ask, AIMessage("", tool_calls=[call]), result]
    assert model.bind_tools([weather]).invoke(talk).text
    print("✓ bind_tools: a call and its result")

    scored = model.bind(logprobs=True, top_logprobs=2).invoke(question)
    tokens = scored.response_metadata["logprobs"]["content"]
    assert [len(token["top_logprobs"]) for token in tokens] == [2] * usage["output_tokens"]
    print("✓ logprobs")

    responses = ChatOpenAI(base_url=base, api_key="none", model="m", temperature=0, use_responses_api=True)
    assert "Paris" in responses.invoke(question, max_output_tokens=24).text
    print("✓ the responses API")

    text = OpenAI(base_url=base, api_key="none", model="m", temperature=0, max_tokens=8)
    assert text.invoke("The capital of France is").startswith(" Paris")
    print("✓ text completions")


if __name__ == "__main__":
    main(*sys.argv[1:])
