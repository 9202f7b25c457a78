"""The causes of a server's death, the most telling first.

Texts as they stand in the sources of vLLM 0.32 and 0.33, torch 2.14, Triton 3.8 and FlashInfer 0.7; those without a device,
of 0.19, and of starts on H100s as they were printed.
"""

from pipeline.vllm.causes.builds import BUILDS
from pipeline.vllm.causes.devices import DEVICES
from pipeline.vllm.causes.ends import ENDS
from pipeline.vllm.causes.memory import MEMORY
from pipeline.vllm.causes.model import MODEL
from pipeline.vllm.causes.system import SYSTEM

CAUSES = (*DEVICES, *MEMORY, *MODEL, *SYSTEM, *BUILDS, *ENDS)
