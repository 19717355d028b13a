"""`qwq serve`: answer the clients of OpenAI's API over HTTP. Needs the extra `serve`."""
