"""The causes of a server's death, the most telling first.

Texts as they stand in the sources of vLLM 0.32 and 0.33, torch 2.14, Triton 3.8 and FlashInfer 0.7; those without a device,
of 0.19, and of starts on H100s as they were printed.
"""

from pipeline.vllm.causes.builds import OF_BUILDS
from pipeline.vllm.causes.devices import OF_DEVICES
from pipeline.vllm.causes.ends import OF_ENDS
from pipeline.vllm.causes.memory import OF_MEMORY
from pipeline.vllm.causes.model import OF_MODEL
from pipeline.vllm.causes.system import OF_SYSTEM

CAUSES = (*OF_DEVICES, *OF_MEMORY, *OF_MODEL, *OF_SYSTEM, *OF_BUILDS, *OF_ENDS)
