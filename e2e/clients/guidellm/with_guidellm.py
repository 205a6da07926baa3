"""guidellm: two streams of synthetic prompts; every request comes back whole.

python with_guidellm.py URL MODEL_FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

REQUESTS, TOKENS = 6, 8


def main(url: str, folder: str) -> None:
    with tempfile.TemporaryDirectory() as out:
        report = Path(out) / "report.json"
        command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"]
        command += ["--backend", f"kind=openai_http,target={url},model=m"]
        command += ["--tokenizer", f"kind=hf_auto,model={folder}"]
        command += ["--data", f"kind=synthetic_text,prompt_tokens=32,output_tokens={TOKENS}"]
        command += ["--profile", "kind=concurrent,streams=2"]
        command += ["--constraint", f"kind=max_requests,count={REQUESTS}"]
        command += ["--output", f"kind=json,path={report}"]
        subprocess.run(command, check=True)
        (benchmark,) = json.loads(report.read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert not requests["errored"], requests["errored"][0]
    assert len(requests["successful"]) == REQUESTS
    assert {request["output_tokens"] for request in requests["successful"]} == {TOKENS}
    print(f"✓ {REQUESTS} requests in two streams, each of {TOKENS} tokens, none failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
