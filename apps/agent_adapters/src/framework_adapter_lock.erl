%% @doc Which Python environment an agent runs in, and by which locks it is known.
%%
%% An environment is of a framework; it may hold a project's own packages beside, or be on a version of Python that the
%% configuration names. Its folder is named by that, `langchain', `langchain-3f2a9c1b0d4e', `langchain-py3.12', by the same rules as in
%% `singularity_agents/_environments.py', which makes it. Reads configuration and files only; hashes are kept while a file
%% is as it was.
-module(framework_adapter_lock).

-include_lib("kernel/include/file.hrl").

-export([of_framework/1]).
-export([of_agent/2]).
-export([of_agent/3]).
-export([configured/1]).
-export([state/1]).
-export([stamp/1]).

-export_type([env/0]).

%% Letters of a lock's hash in the name of a folder.
-define(SHORT, 12).
-define(STAMP, "singularity-lock.sha256").
%% Locks of a project, in the order in which they are looked for.
-define(PROJECT_LOCKS, ["singularity.lock", "uv.lock"]).

-type env() :: #{name := binary(), framework := binary(), python := binary(),
                 %% Lock of a project's own packages.
                 requirements := none | file:filename(),
                 %% What the locks are now; empty where the node was given none to compare with.
                 lock_hash := binary(),
                 %% What makes it: a framework or an agent, behind `singularity frameworks install'.
                 installs := binary(),
                 %% Why there can be none.
                 fault => binary()}.

%% @doc The environment of a framework's own packages.
-spec of_framework(binary()) -> env().
of_framework(Framework) ->
    Base = framework_adapter_env:environment(Framework),
    Python = python(Framework, Base),
    env(Base, none, Python, case Python of <<>> -> Base; _ -> <<Base/binary, " --python ", Python/binary>> end).

%% @doc The environment of an agent on a framework: its project's packages and its version of Python count.
-spec of_agent(binary(), map()) -> env().
of_agent(Framework, Agent) ->
    Own = of_framework(Framework),
    case {maps:get(project, Agent, <<>>), maps:get(requirements, Agent, <<>>), maps:get(python, Agent, <<>>)} of
        {<<>>, <<>>, <<>>} ->
            Own;
        {Project, Requirements, Python0} ->
            #{framework := Base, python := Default} = Own,
            Python = case Python0 of <<>> -> Default; _ -> Python0 end,
            case project_lock(unicode:characters_to_list(Project), unicode:characters_to_list(Requirements)) of
                none when Python =:= Default -> Own;
                none -> env(Base, none, Python, <<Base/binary, " --python ", Python/binary>>);
                {ok, Lock} -> env(Base, Lock, Python, maps:get(id, Agent, Base));
                {error, Fault} -> (env(Base, none, Python, maps:get(id, Agent, Base)))#{fault => Fault}
            end
    end.

%% @doc The same for a task whose earlier attempts ran in environments of these locks: it goes on in the same one while that is there.
-spec of_agent(binary(), map(), Recorded :: [binary()]) -> env().
of_agent(Framework, Agent, Recorded) ->
    Env = #{framework := Base, python := Python, lock_hash := Now} = of_agent(Framework, Agent),
    case Recorded =:= [] orelse lists:member(Now, Recorded) of
        true ->
            Env;
        false ->
            Old = [Env#{name => Name, lock_hash => Hash}
                   || <<_:?SHORT/binary, _/binary>> = Hash <- Recorded, Name <- [name(Base, Hash, Python)], stamp(Name) =:= Hash],
            case Old of [Found | _] -> Found; [] -> Env end
    end.

%% @doc Environments of the configuration's agents that are not their framework's own, with the agents of each.
-spec configured(binary()) -> [{env(), Agents :: [binary()]}].
configured(Framework) ->
    Base = framework_adapter_env:environment(Framework),
    Of = [{of_agent(F, A#{id => Id}), Id} || {Id, A} <- maps:to_list(agent_config:get([agents], #{})), is_map(A),
                                             F <- [maps:get(framework, A, <<"auto">>)], is_binary(F),
                                             framework_adapter_env:environment(F) =:= Base],
    Own = maps:get(name, of_framework(Framework)),
    Names = lists:usort([Name || {#{name := Name}, _} <- Of, Name =/= Own]),
    [{hd([E || {#{name := N} = E, _} <- Of, N =:= Name]), lists:sort([Id || {#{name := N}, Id} <- Of, N =:= Name])} || Name <- Names].

%% @doc Whether an environment is there and of its locks; else why not.
-spec state(env()) -> ok | {error, agent_error:t()}.
state(#{fault := Fault, framework := Framework, installs := Installs}) ->
    {error, agent_error:new(framework_unavailable,
                            <<"agent ", Installs/binary, ": ", Fault/binary, "; run: singularity frameworks lock ", Installs/binary>>,
                            #{<<"framework">> => Framework})};
state(#{name := Name, framework := Framework, lock_hash := Wanted, installs := Installs} = Env) ->
    Remedy = <<"run: singularity frameworks install ", Installs/binary>>,
    case {is_file(python_environment:python(Name)), stamp(Name)} of
        {true, Wanted} ->
            ok;
        %% Nothing to compare with: the zygote looks at the packages that matter.
        {true, _} when Wanted =:= <<>> ->
            ok;
        {true, <<Stamp:?SHORT/binary, _/binary>>} ->
            <<Short:?SHORT/binary, _/binary>> = Wanted,
            unavailable(Framework, Env, <<"the Python environment ", Name/binary, " was made from another lock (", Stamp/binary,
                                          ") than the one that is there (", Short/binary, "); ", Remedy/binary>>);
        _ ->
            unavailable(Framework, Env, <<"the Python environment of ", (said(Env))/binary, " is not installed; ", Remedy/binary>>)
    end.

-spec unavailable(binary(), env(), binary()) -> {error, agent_error:t()}.
unavailable(Framework, #{name := Name}, Message) ->
    {error, agent_error:new(framework_unavailable, Message, #{<<"framework">> => Framework, <<"environment">> => Name})}.

%% How people are told of it.
-spec said(env()) -> binary().
said(#{framework := Framework, requirements := none, python := <<>>}) -> Framework;
said(#{framework := Framework, requirements := none, python := Python}) -> <<Framework/binary, " on Python ", Python/binary>>;
said(#{framework := Framework, requirements := Lock}) -> <<Framework/binary, " with ", (unicode:characters_to_binary(Lock))/binary>>.

%% @doc SHA-256 of the locks that an environment was made from, as its folder says; empty where it is not whole.
-spec stamp(binary()) -> binary().
stamp(Name) ->
    case file:read_file(filename:join(python_environment:dir(Name), ?STAMP)) of
        {ok, Hash} -> string:trim(Hash);
        {error, _} -> <<>>
    end.

%% ---- names and hashes

-spec env(binary(), none | file:filename(), binary(), binary()) -> env().
env(Base, Lock, Python, Installs) ->
    Env = #{framework => Base, python => Python, requirements => Lock, installs => Installs},
    case python_environment:lock(Base) of
        none -> Env#{name => name(Base, case Lock of none -> <<>>; _ -> hash([Lock]) end, Python), lock_hash => <<>>};
        {ok, Own} when Lock =:= none -> Env#{name => name(Base, <<>>, Python), lock_hash => hash([Own])};
        {ok, Own} -> Hash = hash([Own, Lock]), Env#{name => name(Base, Hash, Python), lock_hash => Hash}
    end.

-spec name(binary(), binary(), binary()) -> binary().
name(Base, Hash, Python) ->
    Short = case Hash of <<S:?SHORT/binary, _/binary>> -> [S]; _ -> [] end,
    iolist_to_binary(lists:join(<<"-">>, [Base] ++ Short ++ [[<<"py">>, Python] || Python =/= <<>>])).

%% The agent's framework may name a version of Python; `custom:NAME' and LangGraph have their own entry, or that of their environment.
-spec python(binary(), binary()) -> binary().
python(Framework, Base) ->
    All = agent_config:get([frameworks], #{}),
    case maps:get(Framework, All, maps:get(Base, All, #{})) of
        #{python := Python} when is_binary(Python) -> Python;
        _ -> <<>>
    end.

-spec project_lock(string(), string()) -> none | {ok, file:filename()} | {error, binary()}.
project_lock("", "") ->
    none;
project_lock(Project, "") ->
    first([filename:join(Project, Name) || Name <- ?PROJECT_LOCKS]);
project_lock(Project, Requirements) ->
    Named = case Project of "" -> Requirements; _ -> filename:join(Project, Requirements) end,
    Fault = fun(What) -> {error, unicode:characters_to_binary(["requirements = \"", Requirements, "\": ", What])} end,
    case filename:basename(Named) of
        "pyproject.toml" ->
            case first([filename:join(filename:dirname(Named), Name) || Name <- ?PROJECT_LOCKS]) of
                none -> Fault(["there is no ", lists:join(" and no ", ?PROJECT_LOCKS), " beside it"]);
                Found -> Found
            end;
        _ ->
            case is_file(Named) of true -> {ok, Named}; false -> Fault("it is not there") end
    end.

-spec first([file:filename()]) -> none | {ok, file:filename()}.
first(Files) ->
    case [F || F <- Files, is_file(F)] of [Found | _] -> {ok, Found}; [] -> none end.

-spec is_file(file:filename()) -> boolean().
is_file(Name) ->
    case file:read_file_info(Name, [raw]) of {ok, #file_info{type = regular}} -> true; _ -> false end.

%% Of the contents one behind another, each on a line of its own.
-spec hash([file:filename()]) -> binary().
hash(Files) ->
    Seen = [case file:read_file_info(F, [raw, {time, posix}]) of
                {ok, #file_info{size = Size, mtime = Time, inode = Inode}} -> {F, Size, Time, Inode};
                {error, Reason} -> {F, Reason}
            end || F <- Files],
    case persistent_term:get({?MODULE, Files}, none) of
        {Seen, Hash} ->
            Hash;
        _ ->
            Contents = [case file:read_file(F) of {ok, Text} -> Text; {error, _} -> <<>> end || F <- Files],
            Hash = << <<(hex(H))>> || <<H:4>> <= crypto:hash(sha256, lists:join(<<"\n">>, Contents)) >>,
            persistent_term:put({?MODULE, Files}, {Seen, Hash}),
            Hash
    end.

-spec hex(0..15) -> byte().
hex(N) when N < 10 -> $0 + N;
hex(N) -> $a + N - 10.
