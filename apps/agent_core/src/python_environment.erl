%% @doc Where the Python environments lie that the set-up built, one folder per name.
-module(python_environment).

-export([dir/1]).
-export([python/1]).
-export([source_path/0]).

%% @doc Folder of an environment: `workers.environments', else `SINGULARITY_ENVS', else where the set-up puts them.
-spec dir(binary()) -> file:filename().
dir(Name) ->
    filename:join(environments(), binary_to_list(Name)).

%% @doc Interpreter of an environment, whether it is there or not.
-spec python(binary()) -> file:filename().
python(Name) ->
    filename:join([dir(Name), "bin", "python"]).

%% @doc Source folders of our own Python package (as in `PYTHONPATH'), empty where it is installed in the environments.
-spec source_path() -> string().
source_path() ->
    os:getenv("SINGULARITY_PYTHONPATH", "").

-spec environments() -> file:filename().
environments() ->
    case agent_config:get([workers, environments], <<>>) of
        <<>> -> os:getenv("SINGULARITY_ENVS", "_build/venvs");
        Path -> binary_to_list(Path)
    end.
