"""The same question at every reasoning effort: how long the model thinks, and what it says."""

from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="not-needed")
for effort in ("none", "low", "medium", "high"):
    answer = client.chat.completions.create(
        model="gateway-demo",
        messages=[{"role": "user", "content": "What is 38 plus 47?"}],
        reasoning_effort=effort,
        temperature=0,
    )
    message = answer.choices[0].message
    details = answer.usage.completion_tokens_details if answer.usage else None
    print(f"{effort:>6}: {details.reasoning_tokens if details else 0:3} reasoning tokens, {message.content}")
    print(f"        {(message.model_extra or {}).get('reasoning', '')}")
