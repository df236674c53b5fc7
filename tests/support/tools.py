"""Chat templates that know tools, and functions that may be called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

# As Qwen2.5 has it, with avl-tiny's words for roles.
HERMES_TEMPLATE = """\
{%- if tools %}{{- '# Tools\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- 'USER: ' }}
{%- if message.content is string %}{{- message.content }}{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{- '<image>\\n' }}{%- else %}{{- part.text }}{%- endif %}
{%- endfor %}{%- endif %}{{- ' ' }}
{%- elif message.role == 'assistant' %}{{- 'ASSISTANT:' }}
{%- if message.content is string %}{{- message.content }}{%- else %}
{%- for part in message.content %}{{- part.text }}{%- endfor %}{%- endif %}
{%- for tool_call in message.tool_calls %}
{%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
{%- endfor %}{{- '</s>' }}
{%- elif message.role == 'tool' %}
{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{- 'USER:' }}{%- endif %}
{{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}
"""
# As Ministral 3 has it.
MISTRAL_TEMPLATE = """\
{%- if tools %}{{- '[AVAILABLE_TOOLS]' }}{{- tools | tojson }}
{{- '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.role == 'assistant' %}{{- message.content }}
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{- raise_exception('nine') }}{%- endif %}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}{{- call.function.arguments | tojson }}
{%- endfor %}{{- '</s>' }}
{%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
{%- endif %}
{%- endfor %}
"""
COLOUR = {"type": "string", "enum": ["red", "green"]}
FIND: dict[str, Any] = {
    "name": "find",
    "description": "Finds things.",
    "parameters": {
        "type": "object",
        "properties": {"colour": COLOUR, "most": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["colour", "most"],
        "additionalProperties": False,
    },
}
STOP: dict[str, Any] = {"name": "stop"}
TOOLS = [{"type": "function", "function": one} for one in (FIND, STOP)]


def with_template(package: Path, template: str, name: str) -> Path:
    """A copy of a package, beside it, with another chat template."""
    other = package.parent / name
    if not other.exists():
        shutil.copytree(package, other)
        manifest = other / "avl.json"
        found = json.loads(manifest.read_text()) | {"chat_template": template}
        manifest.write_text(json.dumps(found))
    return other
