"""Eight questions at once with the async client: the worker answers them in one batch."""

import asyncio

from openai import AsyncOpenAI


async def main() -> None:
    async with AsyncOpenAI(base_url="http://localhost:8000/v1", api_key="not-needed") as client:

        async def ask(a: int, b: int) -> str:
            answer = await client.chat.completions.create(
                model="gateway-demo",
                messages=[{"role": "user", "content": f"What is {a} plus {b}?"}],
                temperature=0,
            )
            return f"{a} + {b}: {answer.choices[0].message.content}"

        for line in await asyncio.gather(*(ask(a, 3 * a) for a in range(10, 18))):
            print(line)


asyncio.run(main())
