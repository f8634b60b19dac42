"""The built-in checks: one file per rule, one folder per family.

Every rule is listed here by its module; a rule that is not listed does not exist.
"""

from __future__ import annotations

from importlib import import_module

from mgpu_doctor.authoring import Check

MODULES: tuple[str, ...] = (
    "launch.module_not_executable",
    "launch.interactive_under_launcher",
    "launch.console_script_under_launcher",
    "launch.interpreter_as_script",
    "launch.nested_launchers",
    "launch.launcher_option_unknown",
    "launch.launcher_option_after_script",
    "launch.launcher_option_invalid",
    "launch.launcher_missing",
    "launch.target_not_found",
    "launch.config_as_script",
    "launch.launcher_from_other_environment",
    "launch.launcher_not_installed",
    "launch.local_rank_argument",
    "launch.target_option_unknown",
    "launch.target_options_refused",
    "launch.subcommand_wrong",
    "launch.launcher_options_conflict",
    "launch.arguments_resplit",
    "launch.option_repeated",
    "launch.placeholder_left",
    "launch.independent_copies",
    "launch.argument_order_broken",
    "devices.visible_devices_ignored",
    "devices.physical_index_in_visible_space",
    "devices.visible_index_out_of_range",
    "devices.visible_devices_malformed",
    "devices.visible_devices_misspelt",
    "devices.visible_devices_overridden",
    "devices.more_processes_than_gpus",
    "devices.fewer_processes_than_gpus",
    "devices.device_order_ambiguous",
    "devices.mig_multi_process",
    "devices.visible_devices_set_too_late",
    "devices.device_hard_coded",
    "devices.device_map_under_launcher",
    "devices.container_renumbers_devices",
    "devices.gpu_busy",
    "devices.no_visible_device",
    "rendezvous.port_in_use",
    "rendezvous.port_shared",
    "rendezvous.port_invalid",
    "rendezvous.rendezvous_missing",
    "rendezvous.node_rank_wrong",
    "rendezvous.process_count_not_total",
    "rendezvous.master_address_wrong",
    "rendezvous.expanded_too_early",
    "rendezvous.scheduler_mismatch",
    "rendezvous.interface_missing",
    "rendezvous.hostfile_mismatch",
    "rendezvous.stale_rank_variables",
    "hub.offline_flags_missing",
    "hub.offline_flags_partial",
    "hub.model_files_incomplete",
    "hub.dataset_not_registered",
    "hub.template_mismatch",
    "stack.flash_attn_missing",
    "stack.flash_attn_switch_unread",
    "stack.variable_unread",
    "engine.config_single_process",
    "engine.default_config_used",
    "engine.config_contradictory",
    "engine.deepspeed_only_launches",
    "engine.deepspeed_config_invalid",
    "engine.batch_equation",
    "engine.config_values_disagree",
    "engine.zero3_conflict",
    "engine.data_parallel_fallback",
    "engine.purpose_mismatch",
    "shell.variable_not_exported",
    "shell.continuation_broken",
    "shell.continuation_missing",
    "shell.continuation_dangling",
    "shell.comment_in_continuation",
    "shell.crlf_line_endings",
    "shell.typographic_characters",
    "shell.words_joined",
    "shell.quotes_kept",
    "shell.variable_unset",
    "shell.syntax_error",
    "shell.notebook_shell_state",
    "shell.pipe_takes_options",
    "shell.sudo_resets_environment",
    "shell.list_joined_wrongly",
    "verdict.cause_unknown",
)


def _check(name: str) -> Check:
    module = import_module(f"{__name__}.{name}")
    return Check(module.RULE, module.find)


CHECKS: tuple[Check, ...] = tuple(_check(name) for name in MODULES)
