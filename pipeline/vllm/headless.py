"""vLLM's `serve` as a node that answers no requests, run by the Python of the server's environment.

vLLM's own command line looks up the version of a distribution named vllm, but the build for processors has another name.
"""


def main() -> None:
    """Serve with the arguments of the command line."""
    from vllm.entrypoints.cli.serve import cmd_init  # only in the server's environment
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    (serve,) = cmd_init()
    arguments = serve.subparser_init(FlexibleArgumentParser().add_subparsers()).parse_args()
    serve.validate(arguments)
    serve.cmd(arguments)


if __name__ == "__main__":
    main()
