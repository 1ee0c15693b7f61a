"""The requests and responses of the REST API, as OpenAI defines them."""
