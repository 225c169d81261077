"""What the official OpenAPI document says of a chat request, as far as it can be checked; made by tests/lint_rules.py.

Of JSON Schema's keywords, with ``ref`` for the name of another schema, ``any`` for alternatives, ``more`` for what
other properties are, ``keys`` for what their names are, and ``deprecated`` with the document's words.
"""

from __future__ import annotations

from typing import Any

# fmt: off
VERSION: str = "2.3.0"
ROOT: str = "CreateChatCompletionRequest"
AZURE_VERSIONS: tuple[str, ...] = ("2024-10-21", "2025-04-01-preview", "preview", "v1")
SCHEMAS: dict[str, Any] = {
 "CreateChatCompletionRequest": {
  "properties": {
   "metadata": {"ref": "Metadata"},
   "top_logprobs": {"maximum": 20, "minimum": 0, "type": "integer", "nullable": True},
   "temperature": {"maximum": 2, "minimum": 0, "type": "number", "nullable": True},
   "top_p": {"maximum": 1, "minimum": 0, "type": "number", "nullable": True},
   "user": {
    "deprecated": "This field is being replaced by `safety_identifier` and `prompt_cache_key`.",
    "type": "string",
   },
   "safety_identifier": {"maxLength": 64, "type": "string", "nullable": True},
   "prompt_cache_key": {"type": "string", "nullable": True},
   "prompt_cache_retention": {
    "enum": ["in_memory", "24h"],
    "type": "string",
    "deprecated": "Deprecated. Use `prompt_cache_options.ttl` instead.",
    "nullable": True,
   },
   "prompt_cache_options": {"ref": "PromptCacheOptionsParam"},
   "messages": {"minItems": 1, "type": "array", "items": {"ref": "ChatCompletionRequestMessage"}},
   "model": {"ref": "ModelIdsShared"},
   "service_tier": {"ref": "ServiceTier"},
   "modalities": {"ref": "ResponseModalities"},
   "verbosity": {"ref": "Verbosity"},
   "reasoning_effort": {"ref": "ReasoningEffort"},
   "max_completion_tokens": {"type": "integer", "nullable": True},
   "frequency_penalty": {"minimum": -2, "maximum": 2, "type": "number", "nullable": True},
   "presence_penalty": {"minimum": -2, "maximum": 2, "type": "number", "nullable": True},
   "web_search_options": {
    "type": "object",
    "properties": {
     "user_location": {
      "required": ["type", "approximate"],
      "type": "object",
      "properties": {
       "type": {"enum": ["approximate"], "type": "string"},
       "approximate": {"ref": "WebSearchLocation"},
      },
      "nullable": True,
     },
     "search_context_size": {"ref": "WebSearchContextSize"},
    },
   },
   "response_format": {
    "any": [
     {"ref": "ResponseFormatText"},
     {"ref": "ResponseFormatJsonSchema"},
     {"ref": "ResponseFormatJsonObject"},
    ],
   },
   "audio": {
    "required": ["voice", "format"],
    "type": "object",
    "properties": {
     "voice": {"ref": "VoiceIdsOrCustomVoice"},
     "format": {"enum": ["wav", "aac", "mp3", "flac", "opus", "pcm16"], "type": "string"},
    },
    "nullable": True,
   },
   "store": {"type": "boolean", "nullable": True},
   "moderation": {"ref": "ModerationParam", "nullable": True},
   "stream": {"type": "boolean", "nullable": True},
   "stop": {"ref": "StopConfiguration"},
   "logit_bias": {"type": "object", "more": {"type": "integer", "minimum": -100, "maximum": 100}, "nullable": True},
   "logprobs": {"type": "boolean", "nullable": True},
   "max_tokens": {
    "deprecated": "This value is now deprecated in favor of `max_completion_tokens`",
    "type": "integer",
    "nullable": True,
   },
   "n": {"minimum": 1, "maximum": 128, "type": "integer", "nullable": True},
   "prediction": {"ref": "PredictionContent", "nullable": True},
   "seed": {
    "minimum": -9223372036854776000,
    "maximum": 9223372036854776000,
    "deprecated": "",
    "type": "integer",
    "nullable": True,
   },
   "stream_options": {"ref": "ChatCompletionStreamOptions"},
   "tools": {
    "type": "array",
    "items": {"any": [{"ref": "ChatCompletionTool"}, {"ref": "CustomToolChatCompletions"}]},
   },
   "tool_choice": {"ref": "ChatCompletionToolChoiceOption"},
   "parallel_tool_calls": {"ref": "ParallelToolCalls"},
   "function_call": {
    "deprecated": "Deprecated in favor of `tool_choice`.",
    "any": [{"enum": ["none", "auto"], "type": "string"}, {"ref": "ChatCompletionFunctionCallOption"}],
   },
   "functions": {
    "minItems": 1,
    "maxItems": 128,
    "deprecated": "Deprecated in favor of `tools`.",
    "type": "array",
    "items": {"ref": "ChatCompletionFunctions"},
   },
  },
  "type": "object",
  "required": ["model", "messages"],
 },
 "ChatCompletionFunctionCallOption": {
  "required": ["name"],
  "type": "object",
  "properties": {"name": {"type": "string"}},
 },
 "ChatCompletionFunctions": {
  "required": ["name"],
  "deprecated": "",
  "type": "object",
  "properties": {
   "description": {"type": "string"},
   "name": {"type": "string", "pattern": "[a-zA-Z0-9_-]*", "maxLength": 64},
   "parameters": {"ref": "FunctionParameters"},
  },
 },
 "FunctionParameters": {"type": "object", "more": True},
 "ChatCompletionRequestMessage": {
  "any": [
   {"ref": "ChatCompletionRequestDeveloperMessage"},
   {"ref": "ChatCompletionRequestSystemMessage"},
   {"ref": "ChatCompletionRequestUserMessage"},
   {"ref": "ChatCompletionRequestAssistantMessage"},
   {"ref": "ChatCompletionRequestToolMessage"},
   {"ref": "ChatCompletionRequestFunctionMessage"},
  ],
 },
 "ChatCompletionRequestAssistantMessage": {
  "required": ["role"],
  "type": "object",
  "properties": {
   "content": {
    "any": [
     {"type": "string"},
     {"minItems": 1, "type": "array", "items": {"ref": "ChatCompletionRequestAssistantMessageContentPart"}},
    ],
    "nullable": True,
   },
   "refusal": {"type": "string", "nullable": True},
   "role": {"enum": ["assistant"], "type": "string"},
   "name": {"type": "string"},
   "audio": {"required": ["id"], "type": "object", "properties": {"id": {"type": "string"}}, "nullable": True},
   "tool_calls": {"ref": "ChatCompletionMessageToolCalls"},
   "function_call": {
    "required": ["arguments", "name"],
    "deprecated": "Deprecated and replaced by `tool_calls`.",
    "type": "object",
    "properties": {"arguments": {"type": "string"}, "name": {"type": "string"}},
    "nullable": True,
   },
  },
 },
 "ChatCompletionMessageToolCalls": {
  "type": "array",
  "items": {"any": [{"ref": "ChatCompletionMessageToolCall"}, {"ref": "ChatCompletionMessageCustomToolCall"}]},
 },
 "ChatCompletionMessageCustomToolCall": {
  "required": ["id", "type", "custom"],
  "type": "object",
  "properties": {
   "id": {"type": "string"},
   "type": {"enum": ["custom"], "type": "string"},
   "custom": {
    "required": ["name", "input"],
    "type": "object",
    "properties": {"name": {"type": "string"}, "input": {"type": "string"}},
   },
  },
 },
 "ChatCompletionMessageToolCall": {
  "required": ["id", "type", "function"],
  "type": "object",
  "properties": {
   "id": {"type": "string"},
   "type": {"enum": ["function"], "type": "string"},
   "function": {
    "required": ["name", "arguments"],
    "type": "object",
    "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
   },
  },
 },
 "ChatCompletionRequestAssistantMessageContentPart": {
  "any": [
   {"ref": "ChatCompletionRequestMessageContentPartText"},
   {"ref": "ChatCompletionRequestMessageContentPartRefusal"},
  ],
 },
 "ChatCompletionRequestMessageContentPartRefusal": {
  "required": ["type", "refusal"],
  "type": "object",
  "properties": {"type": {"enum": ["refusal"], "type": "string"}, "refusal": {"type": "string"}},
 },
 "ChatCompletionRequestMessageContentPartText": {
  "required": ["type", "text"],
  "type": "object",
  "properties": {
   "type": {"enum": ["text"], "type": "string"},
   "text": {"type": "string"},
   "prompt_cache_breakpoint": {"ref": "PromptCacheBreakpointParam"},
  },
 },
 "PromptCacheBreakpointParam": {
  "required": ["mode"],
  "type": "object",
  "properties": {"mode": {"enum": ["explicit"], "type": "string"}},
 },
 "ChatCompletionRequestDeveloperMessage": {
  "required": ["content", "role"],
  "type": "object",
  "properties": {
   "content": {
    "any": [
     {"type": "string"},
     {"minItems": 1, "type": "array", "items": {"ref": "ChatCompletionRequestMessageContentPartText"}},
    ],
   },
   "role": {"enum": ["developer"], "type": "string"},
   "name": {"type": "string"},
  },
 },
 "ChatCompletionRequestFunctionMessage": {
  "required": ["role", "content", "name"],
  "deprecated": "",
  "type": "object",
  "properties": {
   "role": {"enum": ["function"], "type": "string"},
   "content": {"type": "string", "nullable": True},
   "name": {"type": "string"},
  },
 },
 "ChatCompletionRequestSystemMessage": {
  "required": ["content", "role"],
  "type": "object",
  "properties": {
   "content": {
    "any": [
     {"type": "string"},
     {"minItems": 1, "type": "array", "items": {"ref": "ChatCompletionRequestSystemMessageContentPart"}},
    ],
   },
   "role": {"enum": ["system"], "type": "string"},
   "name": {"type": "string"},
  },
 },
 "ChatCompletionRequestSystemMessageContentPart": {"ref": "ChatCompletionRequestMessageContentPartText"},
 "ChatCompletionRequestToolMessage": {
  "required": ["role", "content", "tool_call_id"],
  "type": "object",
  "properties": {
   "role": {"enum": ["tool"], "type": "string"},
   "content": {
    "any": [
     {"type": "string"},
     {"minItems": 1, "type": "array", "items": {"ref": "ChatCompletionRequestToolMessageContentPart"}},
    ],
   },
   "tool_call_id": {"type": "string"},
  },
 },
 "ChatCompletionRequestToolMessageContentPart": {"ref": "ChatCompletionRequestMessageContentPartText"},
 "ChatCompletionRequestUserMessage": {
  "required": ["content", "role"],
  "type": "object",
  "properties": {
   "content": {
    "any": [
     {"type": "string"},
     {"minItems": 1, "type": "array", "items": {"ref": "ChatCompletionRequestUserMessageContentPart"}},
    ],
   },
   "role": {"enum": ["user"], "type": "string"},
   "name": {"type": "string"},
  },
 },
 "ChatCompletionRequestUserMessageContentPart": {
  "any": [
   {"ref": "ChatCompletionRequestMessageContentPartText"},
   {"ref": "ChatCompletionRequestMessageContentPartImage"},
   {"ref": "ChatCompletionRequestMessageContentPartAudio"},
   {"ref": "ChatCompletionRequestMessageContentPartFile"},
  ],
 },
 "ChatCompletionRequestMessageContentPartAudio": {
  "required": ["type", "input_audio"],
  "type": "object",
  "properties": {
   "type": {"enum": ["input_audio"], "type": "string"},
   "input_audio": {
    "required": ["data", "format"],
    "type": "object",
    "properties": {"data": {"type": "string"}, "format": {"enum": ["wav", "mp3"], "type": "string"}},
   },
   "prompt_cache_breakpoint": {"ref": "PromptCacheBreakpointParam"},
  },
 },
 "ChatCompletionRequestMessageContentPartFile": {
  "required": ["type", "file"],
  "type": "object",
  "properties": {
   "type": {"enum": ["file"], "type": "string"},
   "file": {
    "type": "object",
    "properties": {"filename": {"type": "string"}, "file_data": {"type": "string"}, "file_id": {"type": "string"}},
   },
   "prompt_cache_breakpoint": {"ref": "PromptCacheBreakpointParam"},
  },
 },
 "ChatCompletionRequestMessageContentPartImage": {
  "required": ["type", "image_url"],
  "type": "object",
  "properties": {
   "type": {"enum": ["image_url"], "type": "string"},
   "image_url": {
    "required": ["url"],
    "type": "object",
    "properties": {"url": {"type": "string"}, "detail": {"enum": ["auto", "low", "high"], "type": "string"}},
   },
   "prompt_cache_breakpoint": {"ref": "PromptCacheBreakpointParam"},
  },
 },
 "ChatCompletionStreamOptions": {
  "type": "object",
  "properties": {"include_usage": {"type": "boolean"}, "include_obfuscation": {"type": "boolean"}},
  "nullable": True,
 },
 "ChatCompletionTool": {
  "required": ["type", "function"],
  "type": "object",
  "properties": {"type": {"enum": ["function"], "type": "string"}, "function": {"ref": "FunctionObject"}},
 },
 "FunctionObject": {
  "required": ["name"],
  "type": "object",
  "properties": {
   "description": {"type": "string"},
   "name": {"type": "string", "pattern": "[a-zA-Z0-9_-]*", "maxLength": 64},
   "parameters": {"ref": "FunctionParameters"},
   "strict": {"type": "boolean", "nullable": True},
  },
 },
 "ChatCompletionToolChoiceOption": {
  "any": [
   {"enum": ["none", "auto", "required"], "type": "string"},
   {"ref": "ChatCompletionAllowedToolsChoice"},
   {"ref": "ChatCompletionNamedToolChoice"},
   {"ref": "ChatCompletionNamedToolChoiceCustom"},
  ],
 },
 "ChatCompletionAllowedToolsChoice": {
  "required": ["type", "allowed_tools"],
  "type": "object",
  "properties": {
   "type": {"enum": ["allowed_tools"], "type": "string"},
   "allowed_tools": {"ref": "ChatCompletionAllowedTools"},
  },
 },
 "ChatCompletionAllowedTools": {
  "required": ["mode", "tools"],
  "type": "object",
  "properties": {
   "mode": {"enum": ["auto", "required"], "type": "string"},
   "tools": {"type": "array", "items": {"type": "object", "more": True}},
  },
 },
 "ChatCompletionNamedToolChoice": {
  "required": ["type", "function"],
  "type": "object",
  "properties": {
   "type": {"enum": ["function"], "type": "string"},
   "function": {"required": ["name"], "type": "object", "properties": {"name": {"type": "string"}}},
  },
 },
 "ChatCompletionNamedToolChoiceCustom": {
  "required": ["type", "custom"],
  "type": "object",
  "properties": {
   "type": {"enum": ["custom"], "type": "string"},
   "custom": {"required": ["name"], "type": "object", "properties": {"name": {"type": "string"}}},
  },
 },
 "CustomToolChatCompletions": {
  "required": ["type", "custom"],
  "type": "object",
  "properties": {
   "type": {"enum": ["custom"], "type": "string"},
   "custom": {
    "required": ["name"],
    "type": "object",
    "properties": {
     "name": {"type": "string"},
     "description": {"type": "string"},
     "format": {
      "any": [
       {
        "required": ["type"],
        "type": "object",
        "properties": {"type": {"enum": ["text"], "type": "string"}},
        "more": False,
       },
       {
        "required": ["type", "grammar"],
        "type": "object",
        "properties": {
         "type": {"enum": ["grammar"], "type": "string"},
         "grammar": {
          "required": ["definition", "syntax"],
          "type": "object",
          "properties": {"definition": {"type": "string"}, "syntax": {"enum": ["lark", "regex"], "type": "string"}},
         },
        },
        "more": False,
       },
      ],
     },
    },
   },
  },
 },
 "Metadata": {
  "type": "object",
  "more": {"type": "string", "maxLength": 512},
  "nullable": True,
  "maxProperties": 16,
  "keys": {"maxLength": 64},
 },
 "ModelIdsShared": {
  "any": [
   {"type": "string"},
   {
    "enum": [
     "gpt-5.6-sol", "gpt-5.6-terra", "gpt-5.6-luna", "gpt-5.5", "gpt-5.5-2026-04-23", "gpt-5.4", "gpt-5.4-mini",
     "gpt-5.4-nano", "gpt-5.4-mini-2026-03-17", "gpt-5.4-nano-2026-03-17", "gpt-5.3-chat-latest", "gpt-5.2",
     "gpt-5.2-2025-12-11", "gpt-5.2-chat-latest", "gpt-5.2-pro", "gpt-5.2-pro-2025-12-11", "gpt-5.1",
     "gpt-5.1-2025-11-13", "gpt-5.1-codex", "gpt-5.1-mini", "gpt-5.1-chat-latest", "gpt-5", "gpt-5-mini",
     "gpt-5-nano", "gpt-5-2025-08-07", "gpt-5-mini-2025-08-07", "gpt-5-nano-2025-08-07", "gpt-5-chat-latest",
     "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-4.1-2025-04-14", "gpt-4.1-mini-2025-04-14",
     "gpt-4.1-nano-2025-04-14", "o4-mini", "o4-mini-2025-04-16", "o3", "o3-2025-04-16", "o3-mini",
     "o3-mini-2025-01-31", "o1", "o1-2024-12-17", "o1-preview", "o1-preview-2024-09-12", "o1-mini",
     "o1-mini-2024-09-12", "gpt-4o", "gpt-4o-2024-11-20", "gpt-4o-2024-08-06", "gpt-4o-2024-05-13",
     "gpt-4o-audio-preview", "gpt-4o-audio-preview-2024-10-01", "gpt-4o-audio-preview-2024-12-17",
     "gpt-4o-audio-preview-2025-06-03", "gpt-4o-mini-audio-preview", "gpt-4o-mini-audio-preview-2024-12-17",
     "gpt-4o-search-preview", "gpt-4o-mini-search-preview", "gpt-4o-search-preview-2025-03-11",
     "gpt-4o-mini-search-preview-2025-03-11", "chatgpt-4o-latest", "codex-mini-latest", "gpt-4o-mini",
     "gpt-4o-mini-2024-07-18", "gpt-4-turbo", "gpt-4-turbo-2024-04-09", "gpt-4-0125-preview", "gpt-4-turbo-preview",
     "gpt-4-1106-preview", "gpt-4-vision-preview", "gpt-4", "gpt-4-0314", "gpt-4-0613", "gpt-4-32k",
     "gpt-4-32k-0314", "gpt-4-32k-0613", "gpt-3.5-turbo", "gpt-3.5-turbo-16k", "gpt-3.5-turbo-0301",
     "gpt-3.5-turbo-0613", "gpt-3.5-turbo-1106", "gpt-3.5-turbo-0125", "gpt-3.5-turbo-16k-0613",
    ],
    "type": "string",
   },
  ],
 },
 "ModerationParam": {
  "required": ["model"],
  "type": "object",
  "properties": {"model": {"type": "string"}, "policy": {"ref": "ModerationPolicyParam", "nullable": True}},
 },
 "ModerationPolicyParam": {
  "type": "object",
  "properties": {
   "input": {"ref": "ModerationConfigParam", "nullable": True},
   "output": {"ref": "ModerationConfigParam", "nullable": True},
  },
 },
 "ModerationConfigParam": {
  "required": ["mode"],
  "type": "object",
  "properties": {"mode": {"ref": "ModerationMode"}},
 },
 "ModerationMode": {"enum": ["score", "block"], "type": "string"},
 "ParallelToolCalls": {"type": "boolean"},
 "PredictionContent": {
  "required": ["type", "content"],
  "type": "object",
  "properties": {
   "type": {"enum": ["content"], "type": "string"},
   "content": {
    "any": [
     {"type": "string"},
     {"minItems": 1, "type": "array", "items": {"ref": "ChatCompletionRequestMessageContentPartText"}},
    ],
   },
  },
 },
 "PromptCacheOptionsParam": {
  "type": "object",
  "properties": {"ttl": {"ref": "PromptCacheTTLEnum"}, "mode": {"ref": "PromptCacheModeEnum"}},
 },
 "PromptCacheModeEnum": {"enum": ["implicit", "explicit"], "type": "string"},
 "PromptCacheTTLEnum": {"enum": ["30m"], "type": "string"},
 "ReasoningEffort": {
  "enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max"],
  "type": "string",
  "nullable": True,
 },
 "ResponseFormatJsonObject": {
  "required": ["type"],
  "type": "object",
  "properties": {"type": {"enum": ["json_object"], "type": "string"}},
 },
 "ResponseFormatJsonSchema": {
  "required": ["type", "json_schema"],
  "type": "object",
  "properties": {
   "type": {"enum": ["json_schema"], "type": "string"},
   "json_schema": {
    "required": ["name"],
    "type": "object",
    "properties": {
     "description": {"type": "string"},
     "name": {"type": "string", "pattern": "[a-zA-Z0-9_-]*", "maxLength": 64},
     "schema": {"ref": "ResponseFormatJsonSchemaSchema"},
     "strict": {"type": "boolean", "nullable": True},
    },
   },
  },
 },
 "ResponseFormatJsonSchemaSchema": {"type": "object", "more": True},
 "ResponseFormatText": {
  "required": ["type"],
  "type": "object",
  "properties": {"type": {"enum": ["text"], "type": "string"}},
 },
 "ResponseModalities": {"type": "array", "items": {"enum": ["text", "audio"], "type": "string"}, "nullable": True},
 "ServiceTier": {
  "enum": ["auto", "default", "flex", "scale", "priority", "fast"],
  "type": "string",
  "nullable": True,
 },
 "StopConfiguration": {
  "any": [
   {"type": "string", "nullable": True},
   {"minItems": 1, "maxItems": 4, "type": "array", "items": {"type": "string"}},
  ],
  "nullable": True,
 },
 "Verbosity": {"enum": ["low", "medium", "high"], "type": "string", "nullable": True},
 "VoiceIdsOrCustomVoice": {
  "any": [
   {"ref": "VoiceIdsShared"},
   {"required": ["id"], "type": "object", "properties": {"id": {"type": "string"}}, "more": False},
  ],
 },
 "VoiceIdsShared": {
  "any": [
   {"type": "string"},
   {
    "enum": ["alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar"],
    "type": "string",
   },
  ],
 },
 "WebSearchContextSize": {"enum": ["low", "medium", "high"], "type": "string"},
 "WebSearchLocation": {
  "type": "object",
  "properties": {
   "country": {"type": "string", "pattern": "[A-Za-z]{2}"},
   "region": {"type": "string"},
   "city": {"type": "string"},
   "timezone": {"type": "string"},
  },
 },
}
