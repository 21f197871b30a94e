"""Run the command line as `python -m rlhf_cli`, so that `accelerate launch -m rlhf_cli ppo …` works."""

from rlhf_cli.cli.app import main

if __name__ == "__main__":
    main()
