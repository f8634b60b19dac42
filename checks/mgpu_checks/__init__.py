"""The built-in checks: one file per rule, one folder per family.

Every rule is listed here by its code and module, with what it wants before it can have anything to say; a rule that
is not listed does not exist. When in doubt a check wants ``ANYTHING``: it is then asked every time.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module

from mgpu_doctor.authoring import Check, DeferredCheck, Wants

ANYTHING = Wants(command=True, machine=True, run=True)
COMMAND = Wants(command=True)
COMMAND_OR_RUN = Wants(command=True, run=True)
MACHINE = Wants(machine=True)
RUN = Wants(run=True)
LOG = Wants(log=True)
ACCELERATE = Wants(names=frozenset({"accelerate"}))
ACCELERATE_OR_RUN = Wants(names=frozenset({"accelerate"}), run=True)
DEEPSPEED = Wants(names=frozenset({"deepspeed"}))
LLAMAFACTORY = Wants(names=frozenset({"llamafactory", "llamafactory-cli"}))

BUILT_IN: tuple[tuple[str, str, Wants], ...] = (
    ("MGD101", "launch.module_not_executable", COMMAND),
    ("MGD102", "launch.interactive_under_launcher", COMMAND),
    ("MGD103", "launch.console_script_under_launcher", COMMAND),
    ("MGD104", "launch.interpreter_as_script", COMMAND),
    ("MGD105", "launch.nested_launchers", COMMAND_OR_RUN),
    ("MGD106", "launch.launcher_option_unknown", COMMAND),
    ("MGD107", "launch.launcher_option_after_script", COMMAND),
    ("MGD108", "launch.launcher_option_invalid", COMMAND),
    ("MGD109", "launch.launcher_missing", COMMAND),
    ("MGD110", "launch.target_not_found", COMMAND),
    ("MGD111", "launch.config_as_script", COMMAND),
    ("MGD112", "launch.launcher_from_other_environment", COMMAND),
    ("MGD113", "launch.launcher_not_installed", COMMAND),
    ("MGD114", "launch.local_rank_argument", COMMAND),
    ("MGD115", "launch.target_option_unknown", COMMAND),
    ("MGD116", "launch.target_options_refused", COMMAND),
    ("MGD117", "launch.subcommand_wrong", COMMAND),
    ("MGD118", "launch.launcher_options_conflict", COMMAND),
    ("MGD119", "launch.arguments_resplit", LLAMAFACTORY),
    ("MGD120", "launch.option_repeated", COMMAND),
    ("MGD121", "launch.placeholder_left", COMMAND),
    ("MGD122", "launch.independent_copies", COMMAND_OR_RUN),
    ("MGD123", "launch.argument_order_broken", COMMAND),
    ("MGD124", "launch.arguments_file_invalid", COMMAND),
    ("MGD201", "devices.visible_devices_ignored", DEEPSPEED),
    ("MGD202", "devices.physical_index_in_visible_space", COMMAND),
    ("MGD203", "devices.visible_index_out_of_range", ANYTHING),
    ("MGD204", "devices.visible_devices_malformed", ANYTHING),
    ("MGD205", "devices.visible_devices_misspelt", ANYTHING),
    ("MGD206", "devices.visible_devices_overridden", COMMAND),
    ("MGD207", "devices.more_processes_than_gpus", COMMAND_OR_RUN),
    ("MGD208", "devices.fewer_processes_than_gpus", COMMAND),
    ("MGD209", "devices.device_order_ambiguous", ANYTHING),
    ("MGD210", "devices.mig_multi_process", ANYTHING),
    ("MGD211", "devices.visible_devices_set_too_late", COMMAND),
    ("MGD212", "devices.device_hard_coded", COMMAND),
    ("MGD213", "devices.device_map_under_launcher", COMMAND),
    ("MGD214", "devices.container_renumbers_devices", COMMAND),
    ("MGD215", "devices.gpu_busy", COMMAND),
    ("MGD216", "devices.no_visible_device", ANYTHING),
    ("MGD301", "rendezvous.port_in_use", COMMAND),
    ("MGD302", "rendezvous.port_shared", COMMAND),
    ("MGD303", "rendezvous.port_invalid", COMMAND),
    ("MGD304", "rendezvous.rendezvous_missing", COMMAND),
    ("MGD305", "rendezvous.node_rank_wrong", COMMAND),
    ("MGD306", "rendezvous.process_count_not_total", COMMAND),
    ("MGD307", "rendezvous.master_address_wrong", COMMAND),
    ("MGD308", "rendezvous.expanded_too_early", COMMAND),
    ("MGD309", "rendezvous.scheduler_mismatch", COMMAND),
    ("MGD310", "rendezvous.interface_missing", ANYTHING),
    ("MGD311", "rendezvous.hostfile_mismatch", COMMAND),
    ("MGD312", "rendezvous.hosts_differ", LOG),
    ("MGD313", "rendezvous.network_isolated", ANYTHING),
    ("MGD314", "rendezvous.ssh_not_ready", LOG),
    ("MGD315", "rendezvous.stale_rank_variables", ANYTHING),
    ("MGD401", "hub.offline_flags_missing", COMMAND),
    ("MGD402", "hub.offline_flags_partial", ANYTHING),
    ("MGD403", "hub.offline_but_remote", COMMAND),
    ("MGD404", "hub.model_files_incomplete", COMMAND),
    ("MGD405", "hub.dataset_not_registered", LLAMAFACTORY),
    ("MGD406", "hub.template_mismatch", LLAMAFACTORY),
    ("MGD407", "hub.output_not_writable", ANYTHING),
    ("MGD408", "hub.hub_unreachable", LOG),
    ("MGD409", "hub.endpoint_malformed", ANYTHING),
    ("MGD501", "stack.torch_without_cuda", MACHINE),
    ("MGD502", "stack.driver_too_old", MACHINE),
    ("MGD503", "stack.gpu_arch_unsupported", MACHINE),
    ("MGD504", "stack.version_out_of_range", MACHINE),
    ("MGD505", "stack.flash_attn_missing", COMMAND),
    ("MGD506", "stack.flash_attn_abi", MACHINE),
    ("MGD507", "stack.flash_attn_unsupported_gpu", MACHINE),
    ("MGD508", "stack.flash_attn_switch_unread", ANYTHING),
    ("MGD509", "stack.variable_unread", ANYTHING),
    ("MGD510", "stack.precision_unsupported", ANYTHING),
    ("MGD511", "stack.cuda_toolkit_mismatch", MACHINE),
    ("MGD512", "stack.package_shadowed", ANYTHING),
    ("MGD513", "stack.nccl_shadowed", MACHINE),
    ("MGD601", "engine.config_single_process", ACCELERATE_OR_RUN),
    ("MGD602", "engine.default_config_used", ACCELERATE),
    ("MGD603", "engine.config_contradictory", ACCELERATE),
    ("MGD604", "engine.deepspeed_only_launches", DEEPSPEED),
    ("MGD605", "engine.deepspeed_config_invalid", COMMAND),
    ("MGD606", "engine.batch_equation", COMMAND),
    ("MGD607", "engine.config_values_disagree", COMMAND),
    ("MGD608", "engine.zero3_conflict", COMMAND),
    ("MGD609", "engine.data_parallel_fallback", COMMAND),
    ("MGD610", "engine.model_does_not_fit", COMMAND),
    ("MGD611", "engine.model_fits_one_gpu", COMMAND),
    ("MGD612", "engine.host_memory_short", COMMAND),
    ("MGD613", "engine.purpose_mismatch", COMMAND),
    ("MGD614", "engine.accelerate_config_invalid", ACCELERATE),
    ("MGD615", "engine.fsdp_settings_refused", COMMAND),
    ("MGD701", "host.shm_too_small", ANYTHING),
    ("MGD702", "host.memlock_too_small", MACHINE),
    ("MGD703", "host.fabric_manager_down", MACHINE),
    ("MGD704", "host.peer_to_peer_broken", ANYTHING),
    ("MGD705", "host.gpu_unhealthy", MACHINE),
    ("MGD706", "host.compute_mode_exclusive", MACHINE),
    ("MGD707", "host.orphaned_gpu_memory", MACHINE),
    ("MGD708", "host.platform_without_nccl", ANYTHING),
    ("MGD709", "host.nccl_setting_harmful", ANYTHING),
    ("MGD710", "host.limits_too_low", ANYTHING),
    ("MGD711", "host.nvml_unavailable", MACHINE),
    ("MGD801", "shell.variable_not_exported", Wants(text=("\n", ";", "&"))),
    ("MGD802", "shell.continuation_broken", Wants(text=("\\",))),
    ("MGD803", "shell.continuation_missing", Wants(text=("\n",))),
    ("MGD804", "shell.continuation_dangling", Wants(text=("\\",))),
    ("MGD805", "shell.comment_in_continuation", Wants(text=("\\",))),
    ("MGD806", "shell.crlf_line_endings", Wants(text=("\r",))),
    ("MGD807", "shell.typographic_characters", COMMAND),
    ("MGD808", "shell.words_joined", Wants(text=("\\",))),
    ("MGD809", "shell.quotes_kept", Wants(text=("'", '"'))),
    ("MGD810", "shell.variable_unset", Wants(text=("$", "`"))),
    ("MGD811", "shell.syntax_error", COMMAND),
    ("MGD812", "shell.notebook_shell_state", Wants(text=("!", "%"))),
    ("MGD813", "shell.pipe_takes_options", Wants(text=("|", "&", ";", ">", "<", "\n"))),
    ("MGD814", "shell.sudo_resets_environment", Wants(text=("su", "ssh", "doas"))),
    ("MGD815", "shell.list_joined_wrongly", Wants(text=("$", "`"))),
    ("MGD901", "verdict.single_gpu_in_fact", RUN),
    ("MGD902", "verdict.single_process_in_fact", RUN),
    ("MGD903", "verdict.gpus_idle_in_fact", RUN),
    ("MGD904", "verdict.collective_wrong", RUN),
    ("MGD905", "verdict.collective_hangs", RUN),
    ("MGD906", "verdict.no_speed_up", RUN),
    ("MGD907", "verdict.slow_rank", RUN),
    ("MGD908", "verdict.slow_link", RUN),
    ("MGD909", "verdict.ranks_diverge", LOG),
    ("MGD910", "verdict.gpu_out_of_memory", LOG),
    ("MGD911", "verdict.killed_by_host", LOG),
    ("MGD912", "verdict.cause_unknown", LOG),
)


def _load(name: str) -> Check:
    module = import_module(f"{__name__}.{name}")
    return Check(module.RULE, module.find)


def _deferred(code: str, name: str, wants: Wants) -> DeferredCheck:
    return DeferredCheck(code, name.partition(".")[2].replace("_", "-"), wants, partial(_load, name))


CHECKS: tuple[DeferredCheck, ...] = tuple(_deferred(*row) for row in BUILT_IN)
