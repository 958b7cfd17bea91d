"""OpenAI's dialect: request bodies in, responses, stream chunks and errors out."""
