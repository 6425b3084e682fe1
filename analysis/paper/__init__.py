"""The paper's and other publications' figures beside ours."""
