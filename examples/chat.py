"""One question, one answer: `.venv/bin/python examples/chat.py`."""

from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="not-needed")
answer = client.chat.completions.create(
    model="gateway-demo",
    messages=[{"role": "user", "content": "What is 17 plus 25?"}],
)
print(answer.choices[0].message.content)
print(answer.usage)
