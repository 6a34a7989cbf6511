from native_cluster.cli import app

if __name__ == "__main__":
    app(prog_name="python -m native_cluster")
