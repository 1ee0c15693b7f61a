"""OpenAI's own client against Batchyard: `python docs/examples/openai_client.py`.

Needs `pip install openai`.
"""

import argparse

from openai import BadRequestError, NotFoundError, OpenAI


def chat(client: OpenAI, model: str) -> None:
    """A question and the whole answer."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What does os.path.join do?"}],
        max_completion_tokens=200,
        temperature=0,
    )
    choice = answer.choices[0]
    print(f"chat: {choice.message.content}\n[ended: {choice.finish_reason}]\n")


def completion(client: OpenAI, model: str) -> None:
    """A text, continued; what OpenAI's API does not have goes into `extra_body`."""
    answer = client.completions.create(
        model=model,
        prompt="def read_lines(path):",
        max_tokens=24,
        temperature=0.7,
        seed=1,
        extra_body={"top_k": 20, "min_p": 0.05},
    )
    print(f"completion: def read_lines(path):{answer.choices[0].text}\n")


def stream(client: OpenAI, model: str) -> None:
    """The answer as it is made, and at the end what it cost."""
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is a context manager?"}],
        max_completion_tokens=200,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    print("stream: ", end="")
    for chunk in chunks:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        if chunk.usage:
            print(f"\n[{chunk.usage.prompt_tokens} tokens read, {chunk.usage.completion_tokens} written]\n")


def errors(client: OpenAI, model: str) -> None:
    """The client's own exceptions, with a message that says what to mend."""
    try:
        client.completions.create(model="another", prompt="Hello")
    except NotFoundError as error:
        print(f"error: {error.code}: {error.message}")
    try:
        client.completions.create(model=model, prompt="Hello", temperature=-1)
    except BadRequestError as error:
        print(f"error: {error.param}: {error.message}")


def main() -> None:
    """Shows everything once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none", help="what the service was started with, if it was")
    options = parser.parse_args()
    with OpenAI(base_url=options.base_url, api_key=options.api_key) as client:
        model = client.models.list().data[0].id
        print(f"model: {model}")
        chat(client, model)
        completion(client, model)
        stream(client, model)
        errors(client, model)


if __name__ == "__main__":
    main()
