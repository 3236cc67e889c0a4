%% @doc Where the Python environments lie, one folder per name, and the locks that they are made from.
-module(python_environment).

-export([dir/1]).
-export([python/1]).
-export([source_path/0]).
-export([folder/0]).
-export([lock/1]).
-export([locks/0]).

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

%% @doc The lock that an environment is made from; none where the node does not know where locks are.
-spec lock(binary()) -> {ok, file:filename()} | none.
lock(Name) ->
    case locks() of
        none -> none;
        {ok, Folder} -> {ok, filename:join(Folder, binary_to_list(Name) ++ ".txt")}
    end.

%% @doc Folder of the locks: of a release beside our Python package, of a checkout beside its sources.
-spec locks() -> {ok, file:filename()} | none.
locks() ->
    Sources = string:lexemes(source_path(), ":"),
    Places = lists:append([[filename:join(S, "locks"), filename:join(filename:dirname(S), "locks")] || S <- Sources]),
    case [P || P <- Places, filelib:is_regular(filename:join(P, "custom.txt"), prim_file)] of
        [Found | _] -> {ok, Found};
        [] -> none
    end.

%% @doc The folder of all environments.
-spec folder() -> file:filename().
folder() ->
    environments().

-spec environments() -> file:filename().
environments() ->
    case agent_config:get([workers, environments], <<>>) of
        <<>> -> os:getenv("SINGULARITY_ENVS", "_build/venvs");
        Path -> binary_to_list(Path)
    end.
