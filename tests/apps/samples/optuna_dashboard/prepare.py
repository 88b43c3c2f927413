"""Writes a small study."""

import optuna

study = optuna.create_study(storage="sqlite:///study.db", study_name="a study")
study.optimize(lambda trial: trial.suggest_float("x", 0, 42), n_trials=3)
