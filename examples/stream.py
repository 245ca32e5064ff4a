"""The answer as it is generated, with the reasoning before it and the usage at its end."""

from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="not-needed")
stream = client.chat.completions.create(
    model="gateway-demo",
    messages=[{"role": "user", "content": "Count from 1 to 20"}],
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.usage is not None:
        print(f"\n{chunk.usage.completion_tokens} tokens")
    for choice in chunk.choices:
        reasoning = (choice.delta.model_extra or {}).get("reasoning")
        print(reasoning or choice.delta.content or "", end="", flush=True)
        if choice.finish_reason is not None:
            print(f"\nfinished: {choice.finish_reason}", end="")
