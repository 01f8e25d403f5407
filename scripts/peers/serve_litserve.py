"""`python serve_litserve.py PORT`: LitServe as it is without options, one worker."""

import sys

import litserve
from network import predict


class Api(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return request["inputs"]

    def predict(self, rows):
        return predict(rows)

    def encode_response(self, predictions):
        return {"predictions": predictions}


if __name__ == "__main__":
    litserve.LitServer(Api(), accelerator="cpu").run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
