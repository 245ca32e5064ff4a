"""Three answers from one reading of the prompt, and how sure the model was of each token of the first."""

from math import exp

from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="not-needed")
answer = client.chat.completions.create(
    model="gateway-demo",
    messages=[{"role": "user", "content": "Who are you?"}],
    n=3,
    temperature=1,
    seed=1,
    logprobs=True,
    top_logprobs=2,
)
for choice in answer.choices:
    print(f"{choice.index}: {choice.message.content}")
logprobs = answer.choices[0].logprobs
for entry in (logprobs.content if logprobs else None) or []:
    others = ", ".join(f"{top.token!r} {exp(top.logprob):.0%}" for top in entry.top_logprobs)
    print(f"{entry.token!r:>16} {exp(entry.logprob):4.0%}   ({others})")
