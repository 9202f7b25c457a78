"""Lines about the machine and the server that several commands print."""

from pipeline.server.state import Launch
from pipeline.server.stop import Closing
from pipeline.stages.check_gpu import Machine
from pipeline.stages.serve import Server
from pipeline.terminal import show


def say(text: str) -> None:
    """Print a line while the command goes on."""
    show([text])


def machine_lines(machine: Machine) -> list[str]:
    """Return what check-gpu found."""
    host = machine.host
    lines = [f"processor  {host.cpu}, {host.cores} cores ({' '.join(host.vector) or 'no wide vectors'}), {host.memory_mib} MiB"]
    if machine.driver is not None:
        lines.append(f"driver     {machine.driver.version}, CUDA {machine.driver.cuda}")
    for gpu in machine.gpus:
        memory = f"{gpu.free_mib:.0f} of {gpu.total_mib:.0f} MiB free"
        if gpu.reserved_mib is not None:
            memory += f" ({gpu.reserved_mib:.0f} kept by the driver)"
        lines.append(f"GPU {gpu.index}      {gpu.name}: {memory}, compute capability {gpu.compute_capability}")
        for process in gpu.processes:
            used = "memory not told" if process.used_mib is None else f"{process.used_mib:.0f} MiB"
            lines.append(f"  used by  pid {process.pid} ({process.name}): {used}")
    for caution in machine.cautions:
        lines.append(f"caution    {caution.fact}\n  → {caution.fix}")
    if machine.reason:
        lines.append(f"no usable GPU: {machine.reason}\n  → {machine.fix}")
    return lines


def server_lines(server: Server) -> list[str]:
    """Return how to reach, watch and stop the server."""
    handle = server.handle
    address = [f"base URL  {handle.base_url}/v1", f"model     {server.model}"]
    if server.attached:
        return [*address, "attached: neither started nor stopped by us"]
    return [*address, f"pid       {handle.pid}", f"log       {handle.log}", "stop      ./inv stop"]


def stop_line(launch: Launch, closing: Closing) -> str:
    """Return the result of a stop: what had to be killed, the port, and the GPU memory left behind."""
    killed = f", killed {', '.join(closing.killed)}" if closing.killed else ""
    port = "free" if closing.port_free else "still taken"
    residual, memory = closing.residual(), ""
    if residual is not None:
        residual_text = "NOT_MEASURED" if residual.value is None else f"{residual.value:.0f} MiB"
        memory = f"; VRAM residual {residual_text}" + (f" ({residual.reason})" if residual.reason else "")
    what = f"stopped pid {launch.pid} in {closing.took_s:.1f} s" if closing.was_running else f"nothing was left of pid {launch.pid}"
    return f"{what}{killed}; port {launch.port} is {port}{memory}"
