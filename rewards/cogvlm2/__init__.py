"""CogVLM2 and CogVLM2-Video, the judges behind VisionReward, without remote code.

`modeling.CogVLM2ForCausalLM.from_pretrained` loads the released checkpoints, `processing.CogVLM2Processor`
prepares what they take, `convert.convert_sat` brings VisionReward-Image from SwissArmyTransformer. Importing
`modeling` registers both models with transformers' Auto classes.
"""
