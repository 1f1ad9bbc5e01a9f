"""What `accelerate launch` makes of the files in configs/accelerate/."""

from __future__ import annotations

from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

ACCELERATE = Path(__file__).parents[2] / "configs" / "accelerate"


def variables(name: str) -> dict[str, str]:
    """The variables of accelerate and FSDP that each of two processes gets from NAME.yaml."""
    words = ["--config_file", str(ACCELERATE / f"{name}.yaml"), "--num_processes", "2", "--num_machines", "1"]
    words += ["--main_process_port", "0", "--mixed_precision", "no", "--module", "mpo"]  # as launch.sh does
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    told = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in told.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
