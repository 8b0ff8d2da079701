"""Write the GLUE submission files of a run with prompt tuning: accelerate launch -m prompt.test --task_name mrpc"""

from common.prediction import predict
from prompt.method import PromptTuning

if __name__ == "__main__":
    predict(PromptTuning)
