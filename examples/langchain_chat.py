"""LangChain's ChatOpenAI, streamed, with usage. Needs `.venv/bin/pip install langchain-openai`."""

from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    model="gateway-demo",
    base_url="http://localhost:8000/v1",
    api_key="not-needed",
    stream_usage=True,
)
usage = None
for chunk in model.stream([("system", "Be brief."), ("human", "Repeat: red green blue")]):
    print(chunk.content, end="", flush=True)
    usage = chunk.usage_metadata or usage
print(f"\n{usage}")
