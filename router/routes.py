"""The HTTP routes.

POST /v1/chat/completions   POST /v1/completions   POST /v1/embeddings
POST /v1/responses          GET, DELETE /v1/responses/{id}
GET  /v1/responses/{id}/input_items   POST /v1/responses/{id}/cancel
POST /v1/messages           POST /v1/messages/count_tokens
POST /tokenize              POST /detokenize
GET  /v1/models             GET  /v1/models/{name}
GET  /health    this process is alive
GET  /ready     a request would be answered: see router.readiness
GET  /load      requests that this process is answering
GET  /version   GET /metrics
GET  /openapi.json   GET /docs   what is written in `ENDPOINTS` below, for programs and people
"""

from starlette.convertors import Convertor, register_url_convertor

from gateway.anthropic import answers as anthropic
from gateway.anthropic.schema import CountTokensBody, MessagesBody
from gateway.openai import answers, response_shapes
from gateway.openai.embeddings import EmbeddingBody
from gateway.openai.responses import ResponsesBody
from gateway.openai.schema import ChatBody, CompletionBody
from gateway.openai.tokens import DetokenizeBody, TokenizeBody, TokenizeChatBody
from router import handlers, response_routes, shapes
from router.endpoints import Endpoint, Parameter


class _ModelName(Convertor[str]):
    """Has slashes within, as names on the Hub have, but ends in none: no path here does."""

    regex = ".*[^/]"

    def convert(self, value: str) -> str:
        """See starlette."""
        return value

    def to_string(self, value: str) -> str:
        """See starlette."""
        return value


register_url_convertor("model", _ModelName())


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/chat/completions",
        handler=handlers.answer_chat,
        summary="Answer a conversation.",
        body=(ChatBody,),
        answer="Answers, or chunks of them, as OpenAI has them.",
        shape=answers.ChatCompletion,
        event=answers.ChatCompletionChunk,
    ),
    Endpoint(
        method="POST",
        path="/v1/completions",
        handler=handlers.answer_completion,
        summary="Continue a text, or several.",
        body=(CompletionBody,),
        answer="Texts, or chunks of them, as OpenAI has them.",
        shape=answers.Completion,
        event=answers.Completion,
    ),
    Endpoint(
        method="POST",
        path="/v1/embeddings",
        handler=handlers.answer_embeddings,
        summary="Turn texts into vectors.",
        body=(EmbeddingBody,),
        answer="Vectors, as OpenAI has them.",
        shape=answers.EmbeddingList,
    ),
    Endpoint(
        method="POST",
        path="/v1/responses",
        handler=response_routes.create_response,
        summary="Answer a conversation, one turn at a time.",
        body=(ResponsesBody,),
        answer="A response, or typed events of it, as OpenAI has them.",
        shape=response_shapes.Response,
        event=response_shapes.ResponseEvent,
    ),
    Endpoint(
        method="GET",
        path="/v1/responses/{response_id}",
        handler=response_routes.retrieve_response,
        summary="Say a stored response again, or follow one that is written in the background.",
        query=(
            Parameter("stream", {"type": "boolean", "default": False}, "Answer with its events."),
            Parameter(
                "starting_after",
                {"type": "integer", "minimum": 0},
                "The number of the last event that is known; needs `stream`.",
            ),
            Parameter("include_obfuscation", {"const": False}, "No event is obfuscated."),
        ),
        answer="The response, or typed events of it.",
        shape=response_shapes.Response,
        event=response_shapes.ResponseEvent,
    ),
    Endpoint(
        method="DELETE",
        path="/v1/responses/{response_id}",
        handler=response_routes.delete_response,
        summary="Forget a stored response.",
        answer="What is forgotten.",
        shape=response_shapes.DeletedResponse,
    ),
    Endpoint(
        method="GET",
        path="/v1/responses/{response_id}/input_items",
        handler=response_routes.list_input_items,
        summary="List the input of a stored response.",
        query=(
            Parameter(
                "limit",
                {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": response_routes.MAX_LISTED,
                    "default": 20,
                },
                "Items to list.",
            ),
            Parameter("order", {"enum": ["asc", "desc"], "default": "desc"}, "Oldest first?"),
            Parameter(
                "after", {"type": "string"}, "The id of the item that the list goes on from."
            ),
        ),
        answer="Some of its items.",
        shape=response_shapes.InputItems,
    ),
    Endpoint(
        method="POST",
        path="/v1/responses/{response_id}/cancel",
        handler=response_routes.cancel_response,
        summary="End a response that is written in the background.",
        answer="The response, ended.",
        shape=response_shapes.Response,
    ),
    Endpoint(
        method="POST",
        path="/v1/messages",
        handler=handlers.answer_messages,
        summary="Answer a conversation, in Anthropic's words.",
        body=(MessagesBody,),
        answer="A message, or events of it, as Anthropic has them.",
        shape=anthropic.Message,
        event=anthropic.MessageEvent,
    ),
    Endpoint(
        method="POST",
        path="/v1/messages/count_tokens",
        handler=handlers.count_message_tokens,
        summary="Count the tokens of a conversation, in Anthropic's words.",
        body=(CountTokensBody,),
        answer="The count.",
        shape=anthropic.InputTokens,
    ),
    Endpoint(
        method="POST",
        path="/tokenize",
        handler=handlers.tokenize_prompt,
        summary="Turn a text or a conversation into tokens.",
        body=(TokenizeBody, TokenizeChatBody),
        answer="The tokens.",
        shape=answers.Tokens,
    ),
    Endpoint(
        method="POST",
        path="/detokenize",
        handler=handlers.detokenize_tokens,
        summary="Turn tokens into text.",
        body=(DetokenizeBody,),
        answer="The text.",
        shape=answers.Text,
    ),
    Endpoint(
        method="GET",
        path="/v1/models",
        handler=handlers.list_models,
        summary="List the models served here.",
        answer="OpenAI's list, with `max_model_len` for each model; Anthropic's for who sends the "
        "header anthropic-version.",
        shape=answers.ServedModels,
    ),
    Endpoint(
        method="GET",
        path="/v1/models/{name:model}",
        handler=handlers.describe_model,
        summary="Describe one model.",
        answer="OpenAI's model, with `max_model_len`; Anthropic's for who sends the header "
        "anthropic-version.",
        shape=answers.ServedModel,
    ),
    Endpoint(
        method="GET",
        path="/health",
        handler=handlers.say_alive,
        summary="Say that this process is alive.",
        answer="It is alive.",
        shape=shapes.Alive,
    ),
    Endpoint(
        method="GET",
        path="/ready",
        handler=handlers.say_ready,
        summary="Say whether a request would be answered; 503 and why, if not.",
        query=(
            Parameter(
                "verbose",
                {"type": "boolean", "default": False},
                "Also say the numbers behind that, in the answer and beside the error; needs the "
                "key, where one is asked for.",
            ),
        ),
        answer="It would.",
        shape=shapes.Ready,
    ),
    Endpoint(
        method="GET",
        path="/load",
        handler=handlers.say_load,
        summary="Count the requests that this process is answering.",
        answer="The count.",
        shape=shapes.Load,
    ),
    Endpoint(
        method="GET",
        path="/version",
        handler=handlers.say_version,
        summary="Say this server's version.",
        answer="The version.",
        shape=shapes.Version,
    ),
    Endpoint(
        method="GET",
        path="/metrics",
        handler=handlers.expose_metrics,
        summary="Measure: latencies, tokens, requests.",
        answer="Prometheus' text format.",
        media_type="text/plain",
    ),
    Endpoint(
        method="GET",
        path="/openapi.json",
        handler=handlers.openapi_document,
        summary="Describe these endpoints, for programs.",
        answer="An OpenAPI 3.1 document.",
    ),
    Endpoint(
        method="GET",
        path="/docs",
        handler=handlers.docs_page,
        summary="Describe these endpoints, for people.",
        answer="A page.",
        media_type="text/html",
    ),
)
