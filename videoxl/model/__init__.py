"""The model: plan (integers), cache (storage), attention (projections), runner (the loop), and their composition."""
