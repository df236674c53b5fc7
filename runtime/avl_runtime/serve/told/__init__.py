"""How answers are told, in the objects of OpenAI's protocol."""
