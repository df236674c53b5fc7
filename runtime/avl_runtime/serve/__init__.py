"""An HTTP server of OpenAI's protocol, on top of `requests`; needs the extra `serve`."""
