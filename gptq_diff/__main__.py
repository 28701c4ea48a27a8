from gptq_diff.cli.app import main

if __name__ == "__main__":
    main()
