"""What a model folder answers, by transformers alone: `python -m examples.answer FOLDER "question"`."""

import sys
from pathlib import Path


def answer(folder: Path, question: str, *, max_new_tokens: int = 200) -> str:
    """Greedy, so that the same model gives the same answer. Raises OSError where the folder holds no model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        tokens = model.generate(**prompt, do_sample=False, max_new_tokens=max_new_tokens)
    return str(tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit('usage: python -m examples.answer FOLDER "question"')
    print(answer(Path(sys.argv[1]), sys.argv[2]))
