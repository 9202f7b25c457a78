"""The causes of a server's death, the most specific first.

The patterns are from the sources of vLLM 0.32 and 0.33, torch 2.14, Triton 3.8 and FlashInfer 0.7, and from the printed logs
of starts without a device, of vLLM 0.19 and on H100s.
"""

from pipeline.vllm.causes.builds import OF_BUILDS
from pipeline.vllm.causes.devices import OF_DEVICES
from pipeline.vllm.causes.ends import OF_ENDS
from pipeline.vllm.causes.memory import OF_MEMORY
from pipeline.vllm.causes.model import OF_MODEL
from pipeline.vllm.causes.system import OF_SYSTEM

CAUSES = (*OF_DEVICES, *OF_MEMORY, *OF_MODEL, *OF_SYSTEM, *OF_BUILDS, *OF_ENDS)
