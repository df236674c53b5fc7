// What the page asks of the server: its models, and answers that stream.

export class AskError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function refused(answer) {
  let message = `expected an answer, found status ${answer.status}`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // What stands between the server and this page may answer in another form.
  }
  const wait = answer.headers.get("Retry-After");
  return new AskError(wait ? `${message} (in ${wait} seconds)` : message, answer.status);
}

async function sent(path, options) {
  try {
    return await fetch(path, { ...options, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new AskError("expected a server that answers, found none; is avl-serve running?", 0);
  }
}

/** The names of the models. */
export async function models(key) {
  const answer = await sent("/v1/models", { headers: headers(key) });
  if (!answer.ok) throw await refused(answer);
  return (await answer.json()).data.map((one) => one.id);
}

/** The chunks of a streamed answer. */
export async function* chunks(body, key, signal) {
  const answer = await sent("/v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!answer.ok) throw await refused(answer);
  let ended = false;
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") {
      ended = true;
      continue;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new AskError(chunk.error.message, answer.status);
    yield chunk;
  }
  if (!ended) throw new AskError("expected the end of an answer, found the connection closed", 0);
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new AskError("expected the rest of an answer, found the connection lost", 0);
    }
    if (part.done) return;
    const whole = (rest + part.value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      if (event.startsWith("data: ")) yield event.slice(6);
    }
  }
}
