// The official Node SDK: `npm install && node chat.mjs`
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.OPENAI_BASE_URL ?? "http://localhost:8000/v1",
  apiKey: "not-needed",
});

const answer = await client.chat.completions.create({
  model: "gateway-demo",
  messages: [{ role: "user", content: "What is 17 plus 25?" }],
});
console.log(answer.choices[0].message.content);

const stream = client.chat.completions.stream({
  model: "gateway-demo",
  messages: [{ role: "user", content: "Count from 1 to 10" }],
});
stream.on("content", (text) => process.stdout.write(text));
const final = await stream.finalChatCompletion();
console.log(`\nfinished: ${final.choices[0].finish_reason}`);
