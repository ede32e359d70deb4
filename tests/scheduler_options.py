"""The options of every scheduler that are held against diffusers: a table, by class."""

from __future__ import annotations

from typing import Any

THRESHOLDING = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
CLIPPING = [
    {"clip_sample": True},
    {"clip_sample": True, "clip_sample_range": 2.0},
    {"clip_sample": False},
    THRESHOLDING,
]
LAYOUTS = [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
ENDS = [{"final_sigmas_type": "zero"}, {"final_sigmas_type": "sigma_min"}]

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": [
        {}, *CLIPPING, {"set_alpha_to_one": False, "steps_offset": 1},
        {"set_alpha_to_one": False, "timestep_spacing": "trailing"},
    ],
    "DDPMScheduler": [
        {}, *CLIPPING, {"steps_offset": 1}, {"variance_type": "fixed_small_log"}, {"variance_type": "fixed_large"},
        {"beta_schedule": "laplace"}, {"beta_schedule": "sigmoid"},
    ],
    "PNDMScheduler": [
        {"skip_prk_steps": True, "steps_offset": 1}, {"skip_prk_steps": True, "set_alpha_to_one": True}, {"set_alpha_to_one": True},
        {"skip_prk_steps": True, "timestep_spacing": "linspace"}, {"skip_prk_steps": True, "timestep_spacing": "trailing"},
        {"skip_prk_steps": True, "prediction_type": "v_prediction"},
    ],
    "LMSDiscreteScheduler": [{}, {"steps_offset": 1, "timestep_spacing": "leading"}],
    "EulerDiscreteScheduler": [
        {}, *ENDS, {"interpolation_type": "log_linear"}, {"steps_offset": 1, "timestep_spacing": "leading"},
        {"prediction_type": "original_sample"},
    ],
    "EulerAncestralDiscreteScheduler": [{}, {"steps_offset": 1, "timestep_spacing": "leading"}],
    "DPMSolverMultistepScheduler": [
        *({"algorithm_type": algorithm, "solver_type": solver, "solver_order": order, "final_sigmas_type": end}
          for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver")
          for solver in ("midpoint", "heun") for order in (1, 2, 3) for end in ("zero", "sigma_min")),
        {"lower_order_final": False}, {"lower_order_final": False, "final_sigmas_type": "sigma_min", "solver_order": 3},
        {"euler_at_final": True, "final_sigmas_type": "sigma_min"}, {"steps_offset": 1, "timestep_spacing": "leading"},
        THRESHOLDING, {**THRESHOLDING, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        {"lambda_min_clipped": -1.0}, {"lambda_min_clipped": -1.0, "timestep_spacing": "leading"},
        {"lambda_min_clipped": -1.0, "timestep_spacing": "trailing"},
    ],
    "UniPCMultistepScheduler": [
        *({"solver_type": solver, "solver_order": order, "predict_x0": x0, "final_sigmas_type": end}
          for solver in ("bh1", "bh2") for order in (1, 2, 3, 4) for x0 in (True, False) for end in ("zero", "sigma_min")
          if solver == "bh2" or end == "sigma_min"),  # bh1 with zero has its own test below
        {"disable_corrector": [0, 1, 5]}, {"lower_order_final": False, "final_sigmas_type": "sigma_min", "solver_order": 3},
        {"lower_order_final": False, "solver_order": 1}, {"steps_offset": 1, "timestep_spacing": "leading"}, THRESHOLDING,
    ],
    "HeunDiscreteScheduler": [
        {}, {"clip_sample": True}, {"clip_sample": True, "clip_sample_range": 2.0}, {"beta_schedule": "exp"},
        {"steps_offset": 1, "timestep_spacing": "leading"},
    ],
    "KDPM2DiscreteScheduler": [{}, {"steps_offset": 1, "timestep_spacing": "leading"}],
    "KDPM2AncestralDiscreteScheduler": [{}, {"steps_offset": 1, "timestep_spacing": "leading"}],
    "DPMSolverSinglestepScheduler": [
        *({"algorithm_type": algorithm, "solver_type": solver, "solver_order": order, "final_sigmas_type": end}
          for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver")
          for solver in ("midpoint", "heun") for order in (1, 2, 3) for end in ("zero", "sigma_min")),
        {"lower_order_final": True, "solver_order": 3, "final_sigmas_type": "sigma_min"},
        {"lower_order_final": True, "final_sigmas_type": "sigma_min"}, THRESHOLDING, {"lambda_min_clipped": -1.0},
        {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    ],
    "DEISMultistepScheduler": [
        *({"solver_order": order, "lower_order_final": lower} for order in (1, 2, 3) for lower in (True, False)),
        {"steps_offset": 1, "timestep_spacing": "leading"}, THRESHOLDING, {"algorithm_type": "dpmsolver++", "solver_type": "heun"},
    ],
    "SASolverScheduler": [
        *({"predictor_order": predictor, "corrector_order": corrector, "algorithm_type": algorithm, "tau_func": tau}
          for predictor, corrector in ((1, 1), (2, 2), (3, 2), (3, 4))
          for algorithm in ("data_prediction", "noise_prediction") for tau in (None, lambda t: 0.5 if t > 300 else 0)),
        {"lower_order_final": False, "predictor_order": 3}, {"steps_offset": 1, "timestep_spacing": "leading"}, THRESHOLDING,
        {"lambda_min_clipped": -1.0}, {"lambda_min_clipped": -1.0, "timestep_spacing": "trailing"},
    ],
    "TCDScheduler": [{}, {"original_inference_steps": 100}, {"set_alpha_to_one": False}, {"clip_sample": True}],
    "EDMEulerScheduler": [
        {"sigma_schedule": schedule, "prediction_type": kind, **end, **other} for schedule in ("karras", "exponential")
        for kind in ("epsilon", "v_prediction") for end in ENDS
        for other in ({}, {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 1.0, "rho": 5.0})
    ],
    "EDMDPMSolverMultistepScheduler": [
        *({"algorithm_type": algorithm, "solver_type": solver, "solver_order": order, "sigma_schedule": schedule, **end}
          for algorithm in ("dpmsolver++", "sde-dpmsolver++") for solver in ("midpoint", "heun") for order in (1, 2, 3)
          for schedule in ("karras", "exponential") for end in ENDS
          if end["final_sigmas_type"] == "zero" or order == 1 or (solver, order) == ("midpoint", 2)),  # the others: see below
        {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 1.0, "rho": 5.0}, THRESHOLDING, {"prediction_type": "v_prediction"},
        {"lower_order_final": False}, {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
    ],
    "CMStochasticIterativeScheduler": [
        {}, {"clip_denoised": False}, {"s_noise": 0.5}, {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 1.0, "rho": 5.0},
    ],
    "FlowMatchEulerDiscreteScheduler": [
        {}, {"shift": 3.0}, {"shift_terminal": 0.1}, {"shift": 3.0, "shift_terminal": 0.02}, {"invert_sigmas": True},
        {"stochastic_sampling": True, "shift": 3.0}, {"num_train_timesteps": 577, "shift": 1.15},
        *({**layout, "shift": shift, **other} for layout in LAYOUTS for shift in (1.0, 3.0)
          for other in ({}, {"invert_sigmas": True}, {"shift_terminal": 0.1})),
    ],
    "FlowMatchHeunDiscreteScheduler": [{}, {"shift": 3.0}, {"num_train_timesteps": 577}],
    "UnCLIPScheduler": [{}, {"clip_sample": False}, {"clip_sample_range": 5.0}, {"num_train_timesteps": 20}],
    "LCMScheduler": [{}, *CLIPPING, {"original_inference_steps": 100}, {"timestep_scaling": 3.0}, {"set_alpha_to_one": False}],
}  # fmt: skip
