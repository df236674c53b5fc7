"""What requests ask: bodies of OpenAI's protocol, each field taken or refused."""
